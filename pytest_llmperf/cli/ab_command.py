"""``llmperf ab BASE [HEAD]``: build both revisions, measure blocks until every test is decided, and report."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from pytest_llmperf.ab.compare import (
    ComparisonPlan,
    PairedComparison,
    code_of,
    comparison_outcome,
    explain_regressions,
    plan_comparison,
    prepare_comparison,
)
from pytest_llmperf.ab.requested import shown
from pytest_llmperf.ab.stopping import Effort, measure_until_decided
from pytest_llmperf.cli.ab_output import progress_lines, result_lines
from pytest_llmperf.cli.say import say
from pytest_llmperf.report.terminal import LONGEST_LIST
from pytest_llmperf.system.pytest_process import without_outputs
from pytest_llmperf.text import printable, some
from pytest_llmperf.verdict.outcome import RunOutcome
from pytest_llmperf.verdict.time_change import slower
from pytest_llmperf.verdict.verdict_file import verdict_file, write_verdicts

WORKING_TREE = "the working tree"


def run_ab(wanted: PairedComparison, options: argparse.Namespace) -> int:
    """Compare, and return the exit code: 1 if a gating cell regressed or head cannot measure it, else 0.

    Raises:
        LlmperfError: as `compare_revisions`, or the verdict file cannot be written.
    """
    outcome = compare_revisions(wanted, here=Path.cwd())
    code = int(outcome.failed)
    if options.verdicts:
        revisions = [wanted.base, *([wanted.head] if wanted.head else [])]
        asked = [*revisions, *device_option(wanted), *_with(wanted)]
        command = ["llmperf", "ab", *asked, "--", *without_outputs(wanted.arguments)]
        write_verdicts(options.verdicts, verdict_file(outcome, command=command, exit_code=code))
    return code


def compare_revisions(wanted: PairedComparison, *, here: Path) -> RunOutcome:
    """Compare two revisions; print the progress after each block, and the results at the end.

    Args:
        wanted: what to compare.
        here: the user's working directory.

    Raises:
        LlmperfError: a revision does not exist or does not build, or a process left nothing to compare.
    """
    effort = Effort.from_now(wanted.most_blocks, wanted.budget_s)
    plan = plan_comparison(wanted, here=here)
    _say(*_plan_lines(plan))
    series, notes = prepare_comparison(plan)
    _say(*notes)
    if series.blocks:
        _say(f"continuing after {len(series.blocks)} blocks that were kept; --restart deletes them")
    told = ""
    for standing in measure_until_decided(series, effort):
        if not standing.final:
            say(*progress_lines(standing, series.blocks, most=effort.most_blocks, left_s=effort.left_s))
        if not told and (told := series.disturbed):
            _say(printable(f"devices disturb each other: {told}: measuring on {series.lanes[0].name} alone"))
    outcome = comparison_outcome(series, standing, code_of(plan))
    slow = [entry.test for entry in outcome.entries if slower(entry.verdicts)]
    if wanted.explain and slow:
        _say(f"profiling what regressed, on both sides: {some(slow, LONGEST_LIST)}")
        outcome.entries = explain_regressions(outcome.entries, slow, series, here=here)
    say(*result_lines(outcome, series.blocks, null_trip=standing.null_trip))
    return outcome


def _plan_lines(plan: ComparisonPlan) -> Iterator[str]:
    wanted = plan.wanted
    if plan.has_other_environment and not wanted.restart:
        yield "the environment has changed since blocks of this comparison were kept: it starts anew"
    head = f"{wanted.head or WORKING_TREE} ({plan.head[:12]})"
    yield f"base {wanted.base} ({plan.base[:12]}), head {head}, in {plan.folder}"
    if plan.is_null:
        yield "base and head are the same tree: this is an A/A comparison, which shows the machine's noise"
    for side, recipe in wanted.recipes.items():
        if recipe.requirements:
            yield f"{side} runs with {', '.join(map(shown, recipe.requirements))}"
    yield "preparing base and head"


def device_option(wanted: PairedComparison) -> list[str]:
    """Return the option that names the devices of a comparison."""
    names = [lane.name for lane in wanted.lanes if lane.name]
    return [f"--device={','.join(names)}"] if names else []


def _with(wanted: PairedComparison) -> Iterator[str]:
    """Yield the options that ask for packages."""
    for side, recipe in wanted.recipes.items():
        for requirement in recipe.requirements:
            yield from (f"--{side}-with", shown(requirement))


def _say(*lines: str) -> None:
    say(*(f"llmperf ab: {line}" for line in lines))
