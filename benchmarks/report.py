"""The HTML report of 1,000 cells by 20 runs: seconds of the command, size, and first paint where Chromium is installed.

::

    python benchmarks/report.py [--repeats 5] [--keep FOLDER]

Each test has ten requests of 64 tokens, so that every picture has its figures; one test in five got 10 % slower, and
every baseline holds an accepted step.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import median

from chromium import Browser, find_chromium
from store import CELLS, RUNS, run_of, stored
from store import results as figures

from pytest_llmperf.metrics import Limit
from pytest_llmperf.storage.baseline_file import update_baseline
from pytest_llmperf.storage.journal import Journal
from pytest_llmperf.storage.schema import Baseline, Epoch, TestResult
from pytest_llmperf.verdict.comparison import Comparison
from pytest_llmperf.verdict.outcome import Entry, RunOutcome
from pytest_llmperf.verdict.verdict_file import verdict_file, write_verdicts

REQUESTS, TOKENS = 10, 64
RUN = "run 99"


def main() -> None:
    """Write the inputs once, then the report in fresh processes; print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="folder to leave all files in")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        cells = prepare(folder)
        seconds, processor = zip(*(write_report(folder) for _ in range(arguments.repeats)), strict=True)
        size_mb = (folder / "report.html").stat().st_size / 1e6
        print(f"{cells} cells x {RUNS} runs: {size_mb:.2f} MB")
        tell("report, s", seconds)
        tell("on a processor", processor)
        if chromium := find_chromium():
            tell("first paint, ms", list(first_paints(chromium, folder / "report.html", arguments.repeats)))


def tell(name: str, values: Sequence[float]) -> None:
    """Print one row."""
    print(f"{name:16} median {median(values):7.2f}, {min(values):.2f} to {max(values):.2f}")


def prepare(folder: Path) -> int:
    """Write baseline, journal and verdicts; return the number of cells."""
    random = Random(0)
    baseline = with_steps(stored())
    update_baseline(folder / "baselines" / "cpu.json", lambda _old: baseline)
    run = run_of(RUN, random).runs[0]
    results = [
        slower(result, 1.1 if number % 5 == 0 else 1.0, random) for number, result in enumerate(figures(RUN, random))
    ]
    comparison = Comparison(baseline, run.environment, family_size=CELLS)
    entries = [
        Entry(
            test=result.observation.test,
            device_key="cpu",
            run=run,
            results=[result],
            verdicts=comparison.verdicts(result, Limit.of),
        )
        for result in results
    ]
    journal = Journal(folder / "run.jsonl", device_key="cpu", run=run)
    journal.path.unlink(missing_ok=True)
    for result in results:
        journal.append(result)
    outcome = RunOutcome(compared=True, entries=entries)
    write_verdicts(folder / "verdicts.json", verdict_file(outcome, command=["pytest", "--llmperf"], exit_code=1))
    return sum(len(entry.verdicts) for entry in entries)


def with_steps(baseline: Baseline) -> Baseline:
    """The TPOT of each test 8 % slower from the tenth run on, accepted."""
    times = sorted(run.time for run in baseline.runs)
    late = {run.run_id for run in baseline.runs if run.time > times[RUNS // 2 - 1]}
    cells = [
        cell.model_copy(update={"value": cell.value * 1.08})
        if cell.metric == "tpot_ms" and cell.run in late and isinstance(cell.value, float)
        else cell
        for cell in baseline.cells
    ]
    epochs = [
        Epoch(test=test, metric="tpot_ms", time=times[RUNS // 2 - 1], commit=None, reason="a safer kernel")
        for test in sorted({cell.test for cell in cells})
    ]
    return baseline.model_copy(update={"cells": cells, "epochs": epochs})


def slower(result: TestResult, factor: float, random: Random) -> TestResult:
    """A result with the samples behind it, its TPOT as after the accepted step and slower by a factor."""
    tpot = 2.9 * factor
    samples = {
        "tpot_ms": [random.lognormvariate(0, 0.01) * tpot for _ in range(REQUESTS)],
        "itl_ms": [random.lognormvariate(0, 0.1) * tpot for _ in range(REQUESTS * (TOKENS - 1))],
    }
    cells = [
        cell.model_copy(update={"value": median(samples["tpot_ms"])}) if cell.metric == "tpot_ms" else cell
        for cell in result.cells
    ]
    return result.model_copy(update={"cells": cells, "samples": samples})


def write_report(folder: Path) -> tuple[float, float]:
    """The seconds of one fresh process, and those that it held a processor."""
    start, held = time.perf_counter(), processor_seconds()
    subprocess.run(
        [sys.executable, "-m", "pytest_llmperf", "report", "verdicts.json", "--format", "html", "-o", "report.html",
         "--journal", "run.jsonl", "--baselines", "baselines"], check=True, cwd=folder
    )  # fmt: skip
    return time.perf_counter() - start, processor_seconds() - held


def processor_seconds() -> float:
    """Those of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def first_paints(chromium: str, page: Path, repeats: int) -> Iterator[float]:
    """Milliseconds from navigation to the first contentful paint, each in a fresh browser."""
    for _ in range(repeats):
        with Browser(chromium) as browser:
            browser.open(page.resolve().as_uri())
            browser.wait_for("performance.getEntriesByName('first-contentful-paint').length > 0")
            yield float(browser.run("performance.getEntriesByName('first-contentful-paint')[0].startTime"))


if __name__ == "__main__":
    main()
