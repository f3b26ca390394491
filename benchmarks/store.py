"""Reading, comparing and writing a baseline of 1,000 cells by 20 runs: seconds and peak memory of a fresh process.

::

    python benchmarks/store.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from statistics import median

from pytest_llmperf.metrics import METRICS, Kind, Limit, Metric
from pytest_llmperf.storage.baseline_file import load_baseline, update_baseline
from pytest_llmperf.storage.merge import merge
from pytest_llmperf.storage.schema import Baseline, CellRun, Observation, Run, TestResult, Warmup, Workload
from pytest_llmperf.verdict.comparison import Comparison
from pytest_llmperf.verdict.judge import is_judged

CELLS = 1000
RUNS = 20
JUDGED = [metric for metric in METRICS.values() if is_judged(metric)]
WORKLOAD = Workload(
    engine="transformers", model="synthetic:32m", revision="recipe", quantization="nf4", dtype="bfloat16",
    attention="sdpa", execution="generate", batch_size=8, input_tokens=64, output_tokens=64, sampling="greedy",
    prompt_sha256="0123456789abcdef",
)  # fmt: skip


def main() -> None:
    """Run the three steps in fresh processes and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", type=Path, help="one measurement on this file, in this process")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "cpu.json"
        update_baseline(path, lambda _old: stored())
        print(f"{CELLS} cells x {RUNS} runs: {path.stat().st_size / 1e6:.1f} MB")
        found = [measure_fresh(path) for _ in range(arguments.repeats)]
    for number, name in enumerate(("read", "compare", "write", "all", "peak MB")):
        values = [row[number] for row in found]
        print(f"{name:8} median {median(values):7.2f}, {min(values):.2f} to {max(values):.2f}")


def measure_fresh(path: Path) -> list[float]:
    """The figures of one fresh process."""
    command = [sys.executable, __file__, "--measure", str(path)]
    return [float(word) for word in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]


def measure(path: Path) -> None:
    """Read, compare and write once; print the seconds of each, of all, and the process's peak in megabytes."""
    start = time.perf_counter()
    baseline = load_baseline(path)
    read = time.perf_counter()
    comparison = Comparison(baseline, {"torch": "2"}, family_size=CELLS)
    verdicts = [v for result in results("new", Random(0)) for v in comparison.verdicts(result, Limit.of)]
    compared = time.perf_counter()
    update_baseline(path, lambda _old: merge(baseline, run_of("new", Random(1))))
    written = time.perf_counter()
    assert len(verdicts) >= CELLS  # noqa: S101  # a benchmark of nothing would be fast
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(read - start, compared - read, written - compared, written - start, peak_mb)


def stored() -> Baseline:
    """A baseline of full size."""
    random = Random(0)
    baseline = run_of("run 00", random)
    for number in range(1, RUNS):
        baseline = merge(baseline, run_of(f"run {number:02}", random))
    return baseline


def run_of(run_id: str, random: Random) -> Baseline:
    """One run of every test."""
    found = results(run_id, random)
    run = Run(
        run_id=run_id, session_id=run_id, time=f"2026-01-01T00:00:00+00:00 {run_id}", commit=None, dirty=None,
        environment={"torch": "2"},
    )  # fmt: skip
    return Baseline(
        device_key="cpu",
        runs=[run],
        workloads={WORKLOAD.hash: WORKLOAD},
        observations=[result.observation for result in found],
        cells=[cell for result in found for cell in result.cells],
    )


def results(run_id: str, random: Random) -> list[TestResult]:
    """One result a test, all judged metrics in each."""
    tests = -(-CELLS // len(JUDGED))
    return [result_of(f"tests/perf/test_decode.py::test_decode[nf4-{n}]", run_id, random) for n in range(tests)]


def result_of(test: str, run_id: str, random: Random) -> TestResult:
    """Noisy figures for what is timed, equal ones for the rest."""
    cells = [
        CellRun(
            test=test, workload=WORKLOAD.hash, metric=metric.key, run=run_id, count=10, mean_log=1.0, mad_log=0.01,
            value=figure(metric, random),
        )
        for metric in JUDGED
    ]  # fmt: skip
    observation = Observation(
        run=run_id, test=test, workload=WORKLOAD.hash, clock="fake", requests=10, tokens_produced=640,
        attention_requested=None, warmup=Warmup(requests=5, steady=True, drift=0.0),
    )  # fmt: skip
    return TestResult(workload=WORKLOAD, observation=observation, cells=cells)


def figure(metric: Metric, random: Random) -> float | str:
    """A value of the metric's kind."""
    if metric.kind is Kind.TIMED:
        return random.lognormvariate(1, 0.01)
    return "digest" if metric.kind is Kind.IDENTITY else 2**30


if __name__ == "__main__":
    main()
