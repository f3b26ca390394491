"""Tables as text."""

from __future__ import annotations

import io
from textwrap import fill

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

PIPE_COLUMNS = 160
"""Width where output is not a terminal: wide enough that nothing is cut."""


def plain_table(title: str = "") -> Table:
    """A table without lines, as pytest's own reports have none."""
    return Table(box=None, pad_edge=False, padding=(0, 1), title=title or None, title_justify="left")


_UNBOUNDED = 1_000_000
_PLACE = "\ue000"
"""Stands where a line will: a character that `printable` lets into no other row."""


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
        console = _console(io.StringIO(), _UNBOUNDED, color=False)
        return Measurement.get(console, console.options, self.table).maximum <= width

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
