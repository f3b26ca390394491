"""Which of the collected tests a run keeps."""

from __future__ import annotations

import pytest

from pytest_llmperf.runner import is_perf


def select(config: pytest.Config, items: list[pytest.Item], *, active: bool) -> None:
    """Keep the perf tests that a run measures, or without ``--llmperf`` the other tests; prepare an active run.

    Raises:
        UsageError: a test's marker or model is wrong, or something that the run needs is not available here.
        BaselineError: the baseline cannot be trusted.
    """
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        _check_marker(item)
        (kept if _belongs(item, active=active) else dropped).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    items[:] = kept
    if active:
        from pytest_llmperf.runner.startup import prepare

        prepare(config, items)


def _check_marker(item: pytest.Item) -> None:
    """Check the marker. Runs that leave out perf tests check it too."""
    if item.get_closest_marker("llmperf"):
        from pytest_llmperf.runner.perf_test import settings_of

        settings_of(item)


def _belongs(item: pytest.Item, *, active: bool) -> bool:
    """Whether a run keeps an item: the perf tests that it measures, or without ``--llmperf`` the other tests."""
    perf = is_perf(item)
    if not (active and perf):
        return perf is active
    from pytest_llmperf.runner.perf_test import is_wanted

    return is_wanted(item)
