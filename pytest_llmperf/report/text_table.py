"""Render tables as plain text, narrowed to a width."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from textwrap import fill

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from pytest_llmperf.text import cut

PIPE_COLUMNS = 160
"""Width if the output is not a terminal: large enough that nothing is truncated."""


def plain_table(title: str = "") -> Table:
    """Return a table without lines, as in pytest's own reports."""
    return Table(box=None, pad_edge=False, padding=(0, 1), title=title or None, title_justify="left")


LEAST_NAME = 16
"""Minimum columns for names; spare columns are dropped before names get less."""
_UNBOUNDED = 1_000_000
_PLACE = "\ue000"
"""Placeholder of a line between rows; a character that `printable` escapes in other rows."""


def room_for_names(table: Table, width: int) -> int:
    """Return the columns left for the first column's names if nothing else is truncated or folded."""
    longest = max((cell.cell_len for cell in _names(table)), default=0)
    return width - _natural_width(table) + max(longest, len(str(table.columns[0].header)))


def narrowed(table: Table, width: int, *, spare: Iterable[str] = ()) -> Table:
    """Return the table for a width: drop spare columns until names have room, then truncate the names.

    Args:
        table: table whose first column holds names, as texts.
        width: available columns.
        spare: headings of columns that may be dropped, in that order.
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
    """A table with lines between its rows that do not affect the column widths."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._lines: list[Text] = []

    def add_line(self, line: Text) -> None:
        """Add a line that may take the whole width."""
        self._lines.append(line)
        self.table.add_row(_PLACE)

    def fits(self, width: int) -> bool:
        """Return whether all cells fit in ``width`` without being folded or truncated."""
        return _natural_width(self.table) <= width

    def render(self, width: int, *, color: bool) -> str:
        """Render as text of at most ``width`` columns."""
        lines = iter(self._lines)
        rows = render(self.table, width, color=color).split("\n")
        return "\n".join(render(next(lines), width, color=color) if row == _PLACE else row for row in rows)


def wrapped(line: str, width: int) -> str:
    """Wrap a line to ``width`` columns; continuation lines are indented."""
    return _without_commands(fill(line, width, subsequent_indent=" " * 4, break_on_hyphens=False))


def indented(line: str, width: int) -> str:
    """Wrap a line below a title, to ``width`` columns."""
    text = fill(line, width, initial_indent=" " * 2, subsequent_indent=" " * 6, break_on_hyphens=False)
    return _without_commands(text)


def _without_commands(text: str) -> str:
    """Separate the colons that begin a line, which a GitHub runner would execute as a command."""
    return re.sub(r"^(\s*)::", r"\1: :", text, flags=re.MULTILINE)


def render(table: RenderableType, width: int, *, color: bool) -> str:
    """Render a table as text of at most ``width`` columns."""
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
