"""Commands about the machine."""

from __future__ import annotations

import argparse
from typing import Any

from pytest_llmperf.cli.say import say


def add_commands(commands: Any) -> None:
    """Declare them."""
    doctor = commands.add_parser("doctor", help="print what this machine can measure, and why not the rest")
    doctor.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, xpu, xpu:N or mps")
    doctor.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace, _rest: list[str]) -> int:
    from pytest_llmperf.measure.doctor import examine
    from pytest_llmperf.report.show import finding_lines

    say(*finding_lines(examine(options.device)))
    return 0
