"""Commands that tell what a run decided."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from pytest_llmperf.cli.say import say
from pytest_llmperf.errors import UsageError

if TYPE_CHECKING:
    from pytest_llmperf.verdict_file import VerdictFile

    Writer = Callable[[VerdictFile], str]

FORMATS: Mapping[str, str] = {
    "github": "pytest_llmperf.report.github:comment",
    "html": "pytest_llmperf.report.webpage:page",
}
"""Each format's writer, found when it is asked for: a function from the verdicts to the whole text."""


def add_commands(commands: Any) -> None:
    """Declare them."""
    report = commands.add_parser("report", help="tell the verdicts of a run in another form")
    report.add_argument("verdicts", type=Path, metavar="VERDICTS", help="file of --llmperf-verdicts or gate --verdicts")
    report.add_argument("--format", choices=FORMATS, default="github", help="(default: github)")
    report.add_argument("-o", "--output", type=Path, metavar="OUT", help="file to write (default: standard output)")
    html = report.add_argument_group("--format html", "what the page shows beside the verdicts")
    html.add_argument("--journal", type=Path, metavar="FILE",
                      help="what the run measured (default: what .llmperf/runs kept of it)")  # fmt: skip
    html.add_argument("--baselines", type=Path, metavar="DIR", help="history (default: baselines, where it is there)")
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace, _rest: list[str]) -> int:
    from pytest_llmperf.verdict_file import read_verdicts

    writer: Writer = resolve_name(FORMATS[options.format])
    if options.format == "html":
        writer = partial(resolve_name(FORMATS["html"]), journal=options.journal, baselines=options.baselines)
    elif options.journal or options.baselines:
        raise UsageError(f"--journal and --baselines are for --format html; found --format {options.format}")
    text = writer(read_verdicts(options.verdicts))
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        say(text.removesuffix("\n"))
    return 0
