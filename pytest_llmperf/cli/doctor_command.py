"""The ``llmperf doctor`` command: what this machine can measure."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pytest_llmperf.cli.say import say

if TYPE_CHECKING:
    from pytest_llmperf.measure.doctor import Finding


def add_commands(commands: Any) -> None:
    """Declare the command."""
    doctor = commands.add_parser(
        "doctor", help="print what this machine can measure, and why it cannot measure the rest"
    )
    doctor.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, xpu, xpu:N or mps")
    doctor.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace, _rest: list[str]) -> int:
    from pytest_llmperf.measure.doctor import examine

    say(*_finding_lines(examine(options.device)))
    return 0


def _finding_lines(findings: Iterable[Finding]) -> Iterator[str]:
    """Yield a table of what a machine can measure, and why it cannot measure the rest."""
    from rich.text import Text

    from pytest_llmperf.report.baseline_table import table_width
    from pytest_llmperf.report.text_table import plain_table, render
    from pytest_llmperf.text import printable

    table = plain_table()
    for heading in ("", "", ""):
        table.add_column(heading, overflow="fold")
    table.show_header = False
    for finding in findings:
        table.add_row(*map(Text, (finding.subject, "yes" if finding.works else "no", printable(finding.detail))))
    yield render(table, table_width(), color=False)
