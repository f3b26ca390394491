"""``pytest --help`` lists the options of users, not those that our processes pass to each other."""

from __future__ import annotations

from pytest_llmperf.runner.options import PROCESS_OPTIONS


def test_help_leaves_out_what_processes_give_to_each_other(pytester):
    """The hidden options still work."""
    told = pytester.runpytest_subprocess("--help").stdout.str()
    assert "--llmperf-isolate" in told
    assert [option for option in PROCESS_OPTIONS if option in told] == []
