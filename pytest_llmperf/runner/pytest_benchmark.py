"""Perf tests as rows of pytest-benchmark: in its table, its files, its comparisons and its histograms.

Its unit is the second. Each workload that was timed is one benchmark, whose rounds are the samples of its TPOT, or of
its call. What has no such samples, as a ratio has not, is left out.

`Metadata`, the plugin's registered name and the attributes of its session that are used here are not documented as an
interface; tests hold them against the installed version.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from shlex import split
from typing import Any

import pytest
from pytest_benchmark.stats import Metadata

from pytest_llmperf.metrics import PRIMARIES, Metric, Scalar
from pytest_llmperf.storage.schema import TestResult
from pytest_llmperf.text import printable, short_name
from pytest_llmperf.verdict.outcome import Entry, entry_of

MS_PER_S = 1e3

COLUMNS = ("median", "iqr", "rounds")
"""What fits a terminal, of a table that stands above another one."""
OTHERS_SORT = "min"
"""How it sorts where nobody asked."""


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
    """Registered on the controller of an active run."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._latest: Entry | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self) -> None:
        """Perf tests are benchmarks without its fixture: ``--benchmark-only`` must not skip them."""
        self._benchmarks.only = False

    def pytest_sessionstart(self) -> None:
        """Make its table small where nobody asked for a larger one; at ``-q`` there is none, as of ours."""
        session, asked = self._benchmarks, self._config.option
        if not asked.benchmark_columns:
            session.columns = COLUMNS
        if asked.benchmark_sort == OTHERS_SORT:
            session.sort = "fullname"
        # Its histograms are drawn while its table is.
        if self._config.get_verbosity() < 0 and not (session.verbose or session.histogram):
            session.quiet = True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add what a test has measured."""
        entry = entry_of(report)
        if entry and not entry.error:
            self._latest = entry
            self._benchmarks.benchmarks.extend(map(_filled, rows_of(entry)))

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """Say on what this was measured: its own ``machine_info`` knows no accelerator."""
        if self._latest:
            run = self._latest.run.model_dump(mode="json")
            output_json["llmperf"] = {"device_key": self._latest.device_key, "run": run}

    @property
    def _benchmarks(self) -> Any:
        return self._config.pluginmanager.get_plugin("pytest-benchmark")


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """One benchmark, by the names that pytest-benchmark reads; ``samples_s`` are its rounds, in seconds.

    ``fullname`` is what it compares by. It ends in device and workload: another of either is another benchmark.
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
    """One row for each workload that has times."""
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
    """What tells the workloads of one test apart, in words; nothing where it has one."""
    fields = [_fields(result) for result in results]
    names = dict.fromkeys(name for one in fields for name in one)
    differing = [name for name in names if len({repr(one.get(name)) for one in fields}) > 1]
    told = [name for name in differing if name != "prompt_sha256"] or differing
    return ["".join(f" {name}={printable(str(one.get(name)))}" for name in told) for one in fields]


def _fields(result: TestResult) -> dict[str, Scalar]:
    fields = result.workload.model_dump(exclude={"settings"}) | result.workload.settings
    return {name: printable(value) if isinstance(value, str) else value for name, value in fields.items()}
