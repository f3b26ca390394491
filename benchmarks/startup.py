"""What a project that has the plugin installed pays for it in a plain ``pytest`` run.

A run of one empty test with the plugin and one with ``-p no:llmperf`` alternate, in changing order. Told is processor
time, which other work on the machine disturbs less than the clock on the wall::

    python benchmarks/startup.py [--pairs 30]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import quantiles


def main() -> None:
    """Print the fastest of both, and the median difference with its quartiles, in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=30)
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_empty.py").write_text("def test_empty(): pass\n", encoding="utf-8")
        run_ms(folder)  # fills the caches of both
        run_ms(folder, "-p", "no:llmperf")
        times = [pair_ms(folder, plugin_first=bool(turn % 2)) for turn in range(pairs)]
    low, middle, high = quantiles([with_plugin - without for with_plugin, without in times], n=4)
    print(f"fastest with {min(w for w, _ in times):.0f} ms, without {min(w for _, w in times):.0f} ms")
    print(f"difference {middle:.1f} ms, quartiles {low:.1f} to {high:.1f}, {pairs} pairs")


def pair_ms(folder: Path, *, plugin_first: bool) -> tuple[float, float]:
    """Milliseconds with and without the plugin."""
    if plugin_first:
        with_plugin = run_ms(folder)
        return with_plugin, run_ms(folder, "-p", "no:llmperf")
    without = run_ms(folder, "-p", "no:llmperf")
    return run_ms(folder), without


def run_ms(folder: Path, *arguments: str) -> float:
    """Milliseconds of processor time of one pytest process."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    # Without bytecode files pytest would rewrite the asserts of every plugin anew each time.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = children_ms()
    subprocess.run(command, check=True, cwd=folder, env=environment, capture_output=True)
    return children_ms() - before


def children_ms() -> float:
    """Processor time of the processes that have been waited for, of user and system."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e3 * (usage.ru_utime + usage.ru_stime)


if __name__ == "__main__":
    main()
