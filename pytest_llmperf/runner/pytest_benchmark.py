"""pytest-benchmark integration: perf tests appear in its table, files, comparisons and histograms.

Its unit is the second. Each timed workload is one benchmark, whose rounds are the samples of its TPOT or of its call.
Results without such samples, such as ratios, are left out.

`Metadata`, the plugin's registered name and the session attributes that are used here are not a documented API; tests
check them against the installed version.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from shlex import split
from typing import Any

import pytest
from pytest_benchmark.stats import Metadata

from pytest_llmperf.hardware.clock import MS_PER_S
from pytest_llmperf.metrics import PRIMARIES, Metric, Scalar
from pytest_llmperf.storage.schema import TestResult
from pytest_llmperf.text import printable, short_name
from pytest_llmperf.verdict.outcome import Entry, entry_of

COLUMNS = ("median", "iqr", "rounds")
"""Columns that fit a terminal; its table stands above another one."""
OTHERS_SORT = "min"
"""pytest-benchmark's default sort key."""


def is_wanted(config: pytest.Config) -> bool:
    """Return whether pytest-benchmark gets rows: an option of its own was given, and none that turns it off.

    It is a dependency, so it is installed everywhere: without that, its table would stand above ours in every run. It
    disables itself under xdist, where it would measure beside other workers; our rows are measured already.
    """
    given = [*config.invocation_params.args, *config.getini("addopts"), *split(os.environ.get("PYTEST_ADDOPTS", ""))]
    if not any(str(word).startswith("--benchmark-") for word in given):
        return False
    disabled = config.getoption("benchmark_disable") and not config.getoption("benchmark_enable")
    skipped = config.getoption("benchmark_skip") and not config.getoption("benchmark_only")
    return not (disabled or skipped)


class Bridge:
    """Adds perf tests to pytest-benchmark; registered on the controller of an active run."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._latest: Entry | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self) -> None:
        """Keep ``--benchmark-only`` from skipping perf tests, which are benchmarks without its fixture."""
        self._benchmarks.only = False

    def pytest_sessionstart(self) -> None:
        """Make its table small unless the user asked for a larger one; with ``-q`` print none, as with ours."""
        session, asked = self._benchmarks, self._config.option
        if not asked.benchmark_columns:
            session.columns = COLUMNS
        if asked.benchmark_sort == OTHERS_SORT:
            session.sort = "fullname"
        # It draws its histograms while it prints its table.
        if self._config.get_verbosity() < 0 and not (session.verbose or session.histogram):
            session.quiet = True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add the results of a test."""
        entry = entry_of(report)
        if entry and not entry.error:
            self._latest = entry
            self._benchmarks.benchmarks.extend(map(_filled, rows_of(entry)))

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """Add the device and the run: its own ``machine_info`` does not know accelerators."""
        if self._latest:
            run = self._latest.run.model_dump(mode="json")
            output_json["llmperf"] = {"device_key": self._latest.device_key, "run": run}

    @property
    def _benchmarks(self) -> Any:
        return self._config.pluginmanager.get_plugin("pytest-benchmark")


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """One benchmark, with the attributes that pytest-benchmark reads; ``samples_s`` are its rounds, in seconds.

    It compares by ``fullname``, which ends in device and workload: a change of either makes another benchmark.
    """

    name: str
    fullname: str
    group: str
    param: str | None
    params: Mapping[str, Scalar]
    extra_info: Mapping[str, Scalar]
    clock: str
    samples_s: Sequence[float]
    cprofile_stats: None = None
    has_error: bool = False


def rows_of(entry: Entry) -> Iterator[BenchmarkRow]:
    """Yield one row per workload that has times."""
    timed = [(result, metric) for result in entry.results if (metric := _timed_metric(result))]
    labels = _labels([result for result, _ in timed])
    for (result, metric), label in zip(timed, labels, strict=True):
        yield _row(entry, result, metric, label)


def _row(entry: Entry, result: TestResult, metric: Metric, label: str) -> BenchmarkRow:
    test = printable(entry.test)
    _, bracket, param = short_name(test).partition("[")
    injected = f" INJECTED {', '.join(entry.injected)}" if entry.injected else ""
    figures = {cell.metric: cell.value for cell in result.cells if cell.value is not None}
    return BenchmarkRow(
        name=f"{short_name(test)}{label}",
        fullname=f"{test}@{entry.device_key}/{result.workload.hash}",
        group=f"llmperf {metric.title}{injected}",
        param=param.removesuffix("]") if bracket else None,
        params=_fields(result),
        extra_info={"metric": metric.key, **figures},
        clock=result.observation.clock,
        samples_s=[sample / MS_PER_S for sample in result.samples[metric.key]],
    )


def _filled(row: BenchmarkRow) -> Metadata:
    benchmark = Metadata(row, iterations=1, options={"timer": row.clock})
    for sample in row.samples_s:
        benchmark.update(sample)
    return benchmark


def _timed_metric(result: TestResult) -> Metric | None:
    return next((metric for metric in PRIMARIES if metric.unit == "ms" and result.samples.get(metric.key)), None)


def _labels(results: Sequence[TestResult]) -> list[str]:
    """Return the parameters that distinguish the workloads of one test, as text; empty if it has one."""
    fields = [_fields(result) for result in results]
    names = dict.fromkeys(name for one in fields for name in one)
    differing = [name for name in names if len({repr(one.get(name)) for one in fields}) > 1]
    told = [name for name in differing if name != "prompt_sha256"] or differing
    return ["".join(f" {name}={printable(str(one.get(name)))}" for name in told) for one in fields]


def _fields(result: TestResult) -> dict[str, Scalar]:
    fields = result.workload.model_dump(exclude={"settings"}) | result.workload.settings
    return {name: printable(value) if isinstance(value, str) else value for name, value in fields.items()}
