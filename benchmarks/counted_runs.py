"""Whether runs of unchanged code raise an alarm when only work is counted, on a loaded machine.

Record a counted baseline of a tiny Llama in each quantization, in an empty project. Then start busy loops, and so many
fresh runs of ``pytest --llmperf --llmperf-counted`` one after another, each with another hash seed. A run is an alarm
if it does not end with exit code 0 and every gating cell unchanged. The script fails if there is one::

    python benchmarks/counted_runs.py [--runs 200] [--busy 4]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import psutil

SUITE = (
    *("--pyargs", "pytest_llmperf.suite", "--llmperf-model", "synthetic:tiny"),
    *("--llmperf-quantization", "bf16,nf4,int8,int8-decomp"),
    *("--llmperf-batch-sizes", "2", "--llmperf-output-tokens", "4"),
)
RECORD = (sys.executable, "-m", "pytest_llmperf", "record", "--counted", "--")
COMPARE = (sys.executable, "-m", "pytest", "--llmperf", "--llmperf-counted")
BUSY = (sys.executable, "-c", "while True: sum(range(10**6))")
_ALL_UNCHANGED = re.compile(r"(\d+) of \1 gating cells decided: \1 unchanged")


def main() -> None:
    """Print how the runs ended, the load of the machine, and how long a run took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="runs of unchanged code")
    parser.add_argument("--busy", type=int, default=4, help="busy loops beside them")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*RECORD, *SUITE], cwd=folder, capture_output=True, check=True)
        with _busy(given.busy):
            runs = [_compare(Path(folder), seed) for seed in range(1, given.runs + 1)]
    ends, seconds, loads = zip(*runs, strict=True)
    for end, number in Counter(ends).most_common():
        print(f"{number} runs: {end}")
    alarms = sum(not _ALL_UNCHANGED.search(end) for end in ends)
    print(f"alarms: {alarms} of {given.runs} runs")
    print(f"a run: {median(seconds):.1f} s (median)")
    print(f"load of {os.cpu_count()} CPUs: {min(loads):.1f} to {max(loads):.1f}")
    sys.exit(int(alarms > 0))


def _compare(folder: Path, seed: int) -> tuple[str, float, float]:
    """How one run ended, its seconds, and the machine's load after it."""
    env = {**os.environ, "PYTHONHASHSEED": str(seed)}
    start = time.perf_counter()
    done = subprocess.run([*COMPARE, *SUITE], cwd=folder, env=env, capture_output=True, text=True, check=False)
    return _end(done), time.perf_counter() - start, psutil.getloadavg()[0]


def _end(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stdout.splitlines() if line.startswith("llmperf: ")]
    return lines[-1] if done.returncode == 0 and lines else f"exit code {done.returncode}: {done.stdout[-2000:]}"


@contextmanager
def _busy(number: int) -> Iterator[None]:
    loops = [subprocess.Popen(BUSY) for _ in range(number)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


if __name__ == "__main__":
    main()
