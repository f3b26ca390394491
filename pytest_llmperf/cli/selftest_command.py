"""``llmperf selftest``: measure false alarms and detection rates on this machine."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path

import pytest

from pytest_llmperf.ab.selftest import Selftest, Trials
from pytest_llmperf.ab.selftest_stats import Trial, add_up
from pytest_llmperf.cli.say import say
from pytest_llmperf.cli.selftest_output import summary_lines, trial_line
from pytest_llmperf.storage.baseline_file import write_model


def run_selftest(wanted: Selftest, options: argparse.Namespace) -> int:
    """Run trials; print each, and the smallest slowdown that this machine detects.

    Returns:
        The exit code: 1 if there was a false alarm, if the largest slowdown was missed once, or if too little was
        decided to know either; 2 if the user interrupted it.

    Raises:
        LlmperfError: no test is selected or one fails, a process dies, or the JSON file cannot be written.
    """
    trials, done = Trials(wanted, Path.cwd()), list[Trial]()
    interrupted = False
    try:
        for number, trial in trials:
            done.append(trial)
            say(trial_line(trial, number=number, of=wanted.pairs))
    except KeyboardInterrupt:
        interrupted = True
        say("llmperf selftest: interrupted; results so far:")
    tool = f"pytest-llmperf {version('pytest-llmperf')}"
    found = add_up(done, wanted.sizes, tool=tool, device_key=trials.device_key, kind=wanted.kind)
    say(*summary_lines(found))
    if options.json:
        write_model(options.json, found, what="results")
    return pytest.ExitCode.INTERRUPTED if interrupted else int(bool(found.shortcomings))
