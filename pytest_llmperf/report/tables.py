"""Tables as text."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table

PIPE_COLUMNS = 160
"""Width where output is not a terminal: wide enough that nothing is cut."""


def plain_table(title: str = "") -> Table:
    """A table without lines, as pytest's own reports have none."""
    return Table(box=None, pad_edge=False, padding=(0, 1), title=title or None, title_justify="left")


def render(table: Table, width: int, *, color: bool) -> str:
    """The table as text of at most ``width`` columns."""
    target = io.StringIO()
    console = Console(
        file=target,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(table)
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines())
