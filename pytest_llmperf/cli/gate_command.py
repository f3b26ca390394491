"""``llmperf gate``: decide a pull request with one command.

The perf tests run once and are screened against the stored baseline. Tests that this leaves open are then compared with
the merge base on this machine: possible regressions, and tests whose baseline is too young, too noisy or missing. Other
tests cost no extra time.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pytest_llmperf.ab.checkout import repository_root
from pytest_llmperf.ab.compare import PairedComparison
from pytest_llmperf.ab.gate import combined, gate_base, open_tests, screen_tests, target_branch
from pytest_llmperf.cli.ab_command import compare_revisions, device_option
from pytest_llmperf.cli.say import say
from pytest_llmperf.report.terminal import conclusion
from pytest_llmperf.runner.config import failing_outcomes
from pytest_llmperf.system.pytest_process import only_tests, without_outputs
from pytest_llmperf.text import plural, printable
from pytest_llmperf.verdict.verdict_file import VerdictFile, verdict_file, write_verdicts


def run_gate(wanted: PairedComparison, options: argparse.Namespace) -> int:
    """Screen, compare the open tests, and return the exit code: pytest's if the tests could not be run.

    Raises:
        LlmperfError: there is no merge base, a revision does not build, or a process left nothing to compare.
    """
    here = Path.cwd()
    fail_on = failing_outcomes(options.fail_on, strict=options.strict, option="--fail-on")
    base = _base(wanted.base, here)
    _say(f"screening against the baseline of {base[:12]}")
    code, screened = screen_tests([*wanted.arguments, *wanted.lanes[0].arguments], base, here=here)
    if screened is None:
        return code
    compared = None
    if tests := open_tests(screened):
        left_open = f"{len(tests)} of {plural(len(screened.tests), 'test')} left open"
        _say(f"{left_open}: comparing with {base[:12]}")
        compared = _compared(wanted, base, tests, here)
    found = combined(screened, compared, fail_on=fail_on)
    say(final_line(found))
    if options.verdicts:
        write_verdicts(options.verdicts, found)
    return found.exit_code


def final_line(found: VerdictFile) -> str:
    """Return the gate's last line of output."""
    return f"llmperf gate: {conclusion(found)}" + (f"; {printable(found.breach)}" if found.breach else "")


def _base(branch: str, here: Path) -> str:
    root = repository_root(here)
    branch = branch or target_branch(root, os.environ)
    base = gate_base(root, branch)
    if base.is_first_parent:
        _say(f"HEAD is on {printable(branch)}: comparing with its first parent, {base.commit[:12]}")
    return base.commit


def _compared(wanted: PairedComparison, base: str, tests: Sequence[str], here: Path) -> VerdictFile:
    arguments = [*wanted.arguments, *only_tests(tests)]
    outcome = compare_revisions(replace(wanted, base=base, arguments=arguments), here=here)
    command = ["llmperf", "ab", base, *device_option(wanted), "--", *without_outputs(wanted.arguments)]
    return verdict_file(outcome, command=command, exit_code=int(outcome.failed))


def _say(line: str) -> None:
    say(f"llmperf gate: {line}")
