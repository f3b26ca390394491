"""Tables as text."""

from __future__ import annotations

import io
from collections.abc import Iterable
from textwrap import fill

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from pytest_llmperf.text import cut

PIPE_COLUMNS = 160
"""Width where output is not a terminal: wide enough that nothing is cut."""


def plain_table(title: str = "") -> Table:
    """A table without lines, as pytest's own reports have none."""
    return Table(box=None, pad_edge=False, padding=(0, 1), title=title or None, title_justify="left")


LEAST_NAME = 16
"""Columns that a name has before a figure beside it gives way."""
_UNBOUNDED = 1_000_000
_PLACE = "\ue000"
"""Stands where a line will: a character that `printable` lets into no other row."""


def room_for_names(table: Table, width: int) -> int:
    """Columns that are left for the names, which stand in the first column, if nothing else is cut or folded."""
    longest = max((cell.cell_len for cell in _names(table)), default=0)
    return width - _natural_width(table) + max(longest, len(str(table.columns[0].header)))


def narrowed(table: Table, width: int, *, spare: Iterable[str] = ()) -> Table:
    """The same table for so many columns: it loses what it can spare until names have room, and then they are cut.

    Args:
        table: whose first column holds names, as texts.
        width: columns that there are.
        spare: headings of columns in the order in which they give way.
    """
    for heading in spare:
        if room_for_names(table, width) >= LEAST_NAME:
            break
        table = _without(table, heading)
    room = max(room_for_names(table, width), 1)
    for name in _names(table):
        name.plain = cut(name.plain, room)
    return table


def _without(table: Table, heading: str) -> Table:
    kept = [column for column in table.columns if column.header != heading]
    rest = plain_table()
    for column in kept:
        rest.add_column(column.header, justify=column.justify, no_wrap=column.no_wrap)
    for row in zip(*(column.cells for column in kept), strict=True):
        rest.add_row(*row)
    return rest


def _names(table: Table) -> list[Text]:
    return [cell for cell in table.columns[0].cells if isinstance(cell, Text)]


def _natural_width(table: Table) -> int:
    console = _console(io.StringIO(), _UNBOUNDED, color=False)
    return Measurement.get(console, console.options, table).maximum


class Outline:
    """A table with lines above its rows that take no part in the widths of its columns."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._lines: list[Text] = []

    def add_line(self, line: Text) -> None:
        """Add a line that may take the whole width."""
        self._lines.append(line)
        self.table.add_row(_PLACE)

    def fits(self, width: int) -> bool:
        """Whether its columns have room in ``width`` without a cell that is folded or cut."""
        return _natural_width(self.table) <= width

    def render(self, width: int, *, color: bool) -> str:
        """All of it as text of at most ``width`` columns."""
        lines = iter(self._lines)
        rows = render(self.table, width, color=color).split("\n")
        return "\n".join(render(next(lines), width, color=color) if row == _PLACE else row for row in rows)


def wrapped(line: str, width: int) -> str:
    """A long line as several of at most ``width`` columns, all but the first indented."""
    return fill(line, width, subsequent_indent=" " * 4, break_on_hyphens=False)


def render(table: RenderableType, width: int, *, color: bool) -> str:
    """The table as text of at most ``width`` columns."""
    target = io.StringIO()
    _console(target, width, color=color).print(table)
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines())


def _console(target: io.StringIO, width: int, *, color: bool) -> Console:
    return Console(
        file=target,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        markup=False,
        emoji=False,
    )
