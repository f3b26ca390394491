"""Whole files of tests: those that need a CUDA device, and the suite of kernels."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from gpu.process import echo
from gpu.results import NEEDS_CUDA, Results
from gpu.step import PYTEST, ROOT, Place

WORKERS = 6
"""Most of a test is waiting for processes that import torch; no test times anything."""
SCRIPTS = Path(__file__).parents[1]


def cuda_tests(place: Place, results: Results) -> None:
    """The tests that are marked ``cuda``, each a line by :mod:`gpu.pytest_lines` as it ends."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if _is_for_cuda(path)]
    workers = ["-n", str(WORKERS), "--dist", "worksteal"] if place.is_cuda and find_spec("xdist") else []
    code = _run(results, "-m", "cuda", "-rs", *workers, *map(str, files), folder=ROOT)
    if not place.is_cuda:
        results.skip("pytest -m cuda", NEEDS_CUDA)
        return
    results.compare("pytest -m cuda", expected="exit 0", found=f"exit {code}")


def kernels(place: Place, results: Results) -> None:
    """The suite of kernels, and the timings that it tells."""
    code = _run(results, "--llmperf", f"--device={place.device}", "--pyargs", "pytest_llmperf.suite.kernels",
                folder=place.folder)  # fmt: skip
    results.compare("pytest_llmperf.suite.kernels", expected="exit 0", found=f"exit {code}")


def _is_for_cuda(path: Path) -> bool:
    return "mark.cuda" in path.read_text(encoding="utf-8")


def _run(results: Results, *arguments: str, folder: Path) -> int:
    """Run pytest with the plugin that writes lines, and return its exit code."""
    command = [*PYTEST, "-p", "gpu.pytest_lines", *arguments]
    path = os.pathsep.join(filter(None, (str(SCRIPTS), os.environ.get("PYTHONPATH", ""))))
    variables = {**results.variables, "PYTHONPATH": path, "PYTEST_ADDOPTS": ""}
    return echo(command, folder=folder, variables=variables)[0]
