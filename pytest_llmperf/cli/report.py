"""The ``llmperf report`` command: the verdicts of a run in the formats of other tools."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from pytest_llmperf.cli.say import say
from pytest_llmperf.errors import UsageError

if TYPE_CHECKING:
    from pytest_llmperf.verdict.verdict_file import VerdictFile

    Writer = Callable[[VerdictFile], str]

FORMATS: Mapping[str, str] = {
    "github": "pytest_llmperf.report.github:comment",
    "html": "pytest_llmperf.report.html:page",
    "github-annotations": "pytest_llmperf.report.github:workflow_commands",
    "customSmallerIsBetter": "pytest_llmperf.report.exports:custom_smaller_is_better",
    "customBiggerIsBetter": "pytest_llmperf.report.exports:custom_bigger_is_better",
    "bencher": "pytest_llmperf.report.exports:bencher",
    "openmetrics": "pytest_llmperf.report.openmetrics:openmetrics",
}
"""Each format's writer, imported on use: a function from the verdicts to the whole text."""

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"


def add_commands(commands: Any) -> None:
    """Declare the command."""
    report = commands.add_parser("report", help="convert the verdicts of a run to the format of another tool")
    report.add_argument(
        "verdicts", type=Path, metavar="VERDICTS", help="file from --llmperf-verdicts or llmperf gate --verdicts"
    )
    report.add_argument("--format", choices=FORMATS, default="github", help="(default: github)")
    target = report.add_mutually_exclusive_group()
    target.add_argument("-o", "--output", type=Path, metavar="OUT", help="file to write (default: standard output)")
    target.add_argument("--summary", action="store_true", help=f"append it to ${STEP_SUMMARY}, with --format github")
    html = report.add_argument_group("--format html", "what the page shows in addition to the verdicts")
    html.add_argument("--journal", type=Path, metavar="FILE",
                      help="the run's journal (default: the one in .llmperf/runs)")  # fmt: skip
    html.add_argument(
        "--baselines", type=Path, metavar="DIR", help="baselines for the history (default: baselines, if it exists)"
    )
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace, _rest: list[str]) -> int:
    from pytest_llmperf.verdict.verdict_file import read_verdicts

    found = read_verdicts(options.verdicts)
    if options.summary:
        _append_summary(found, _summary_file(options.format))
        return 0
    writer: Writer = resolve_name(FORMATS[options.format])
    if options.format == "html":
        writer = partial(resolve_name(FORMATS["html"]), journal=options.journal, baselines=options.baselines)
    elif options.journal or options.baselines:
        raise UsageError(f"--journal and --baselines are for --format html; found --format {options.format}")
    text = writer(found)
    if options.output:
        options.output.write_text(text, encoding="utf-8", newline="\n")
    else:
        say(text.removesuffix("\n"))
    return 0


def _summary_file(wanted: str) -> Path:
    name = os.environ.get(STEP_SUMMARY)
    if wanted != "github":
        raise UsageError(f"--summary: found --format {wanted}, expected github: leave out --format")
    if not name:
        raise UsageError(f"--summary: {STEP_SUMMARY} is not set; expected a step of GitHub Actions: or give -o FILE")
    return Path(name)


def _append_summary(found: VerdictFile, path: Path) -> None:
    """Append the summary; earlier output of the step counts against GitHub's limit too."""
    from pytest_llmperf.report.github import SUMMARY_BYTES, summary

    taken = path.stat().st_size if path.exists() else 0
    text = summary(found, SUMMARY_BYTES - taken - 1)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n{text}")
