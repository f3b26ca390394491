"""End to end: a project with a baseline, a run that must be green, one that must be red, and one in isolation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from gpu.process import echo
from gpu.results import NEEDS_CUDA, Results
from gpu.step import PYTEST, Place

RECORDED = 3
SLOW_TEST = "loop-1-bf16"
"""Part of the id of the test that is slowed."""
ALTERNATIONS = 4
WITHIN = 0.02
QUANTIZATIONS = ("bf16", "nf4", "int8")

TESTS = f"""
import pytest


@pytest.mark.parametrize("llm", {QUANTIZATIONS}, indirect=True)
@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("execution", ["loop", "graph"])
def test_decode(llm, llmperf, batch_size, execution):
    llmperf.generate(llm, batch_size=batch_size, execution=execution)
"""
CONFTEST = '''
"""Each forward of one test waits, where the environment names it: about 5 ms of the device, or 20 ms of a CPU."""

import os
import time

import pytest
import torch

SLOW = os.environ.get("GPU_DAY_SLOW")


def wait(model, _arguments):
    if model.device.type == "cuda":
        torch.cuda._sleep(10_000_000)
    else:
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def slow(request):
    if SLOW and SLOW in request.node.name:
        handle = request.getfixturevalue("llm").model.register_forward_pre_hook(wait)
        yield
        handle.remove()
    else:
        yield
'''
SHORT = ("--llmperf-input-tokens=16", "--llmperf-output-tokens=9", "--llmperf-requests=3", "--llmperf-warmup=2",
         "--llmperf-explain=off")  # fmt: skip
"""Six runs of twelve tests must fit into three minutes."""
BARE_TOKENS = 17


def model(place: Place, results: Results) -> None:
    """The model is built, or awaited where the day's beginning has started it."""
    from pytest_llmperf.models.synthetic import prepare

    folder = prepare(place.model)
    found = (folder / "model.safetensors").exists() or (folder / "model.safetensors.index.json").exists()
    results.compare(f"{place.model} has weights", expected=True, found=found)


def record(place: Place, results: Results) -> None:
    """Runs that make a baseline, each a session of its own."""
    for number in range(1, RECORDED + 1):
        code, verdicts = _run(place, "--llmperf-update", LLMPERF_SESSION_ID=f"session {number}")
        results.compare(f"recorded run {number}", expected="exit 0", found=f"exit {code}")
        _check_valid(place, results, f"recorded run {number}", verdicts, tests=6)


def green(place: Place, results: Results) -> None:
    """A run of the same code passes."""
    code, verdicts = _run(place, LLMPERF_SESSION_ID="session 0")
    results.compare("clean run", expected="exit 0", found=f"exit {code}")
    results.compare("cells that fail", expected=0, found=sum(cell["fails"] for cell in _cells(verdicts)))
    _check_valid(place, results, "clean run", verdicts, tests=6)
    results.measured("cells decided", f"{verdicts['decided']} of {verdicts['total']}")
    for test, value in _values(verdicts, "tpot_ms"):
        results.measured(f"TPOT of {test}", f"{value:.4g} ms")


def red(place: Place, results: Results) -> None:
    """One of two tests is slowed: it fails after confirmation, and the other passes."""
    code, verdicts = _run(place, "-k", "bf16 and loop", GPU_DAY_SLOW=SLOW_TEST, LLMPERF_SESSION_ID="session 0")
    results.compare("run with a slow test", expected="exit 1", found=f"exit {code}")
    found = {test["test"]: [cell for cell in test["cells"] if cell["metric"] == "tpot_ms"] for test in _tests(verdicts)}
    slow = [cell for test, cells in found.items() if SLOW_TEST in test for cell in cells]
    others = [cell for test, cells in found.items() if SLOW_TEST not in test for cell in cells]
    results.compare("TPOT of the slow test", expected="regressed", found=_outcomes(slow))
    results.measured("what it says", "; ".join(cell["sentence"] for cell in slow) or "nothing")
    alarms = sum(cell["fails"] for cell in others)
    results.compare("TPOT of the other test fails", expected="0 of 1", found=f"{alarms} of {len(others)}")


def bare_loop(place: Place, results: Results) -> None:
    """TPOT of ``loop`` beside the bare loop, alternating in one process."""
    from fidelity import ratios_of

    for quantization in QUANTIZATIONS:
        ratios = ratios_of(place.device, place.model, quantization, ALTERNATIONS, BARE_TOKENS)
        told = f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        name = f"{quantization}: TPOT beside a bare loop"
        if place.is_cuda:
            near = abs(median(ratios) - 1) <= WITHIN
            results.compare(name, expected=f"1 within {WITHIN:.0%}", found=told, holds=near)
        else:
            results.measured(name, told, why="on a CPU: not judged")


def isolated(place: Place, results: Results) -> None:
    """Each model in a process of its own: the one that waits disturbs none of them."""
    code, verdicts = _run(place, "--llmperf-isolate", "-k", "-1-bf16 or -1-nf4", folder="isolated")
    results.compare("run in isolation", expected="exit 0", found=f"exit {code}")
    _check_valid(place, results, "run in isolation", verdicts, tests=2)


def _run(place: Place, *arguments: str, folder: str = "project", **variables: str) -> tuple[int, dict[str, Any]]:
    """Run the project's tests; its exit code and its verdict file, without which nothing can be checked."""
    project = _project(place.folder / folder)
    file = project / "verdicts.json"
    file.unlink(missing_ok=True)
    command = [*PYTEST, "--llmperf", f"--device={place.device}", f"--llmperf-model={place.model}", *SHORT,
               f"--llmperf-verdicts={file}", *_for_a_rehearsal(place), *arguments]  # fmt: skip
    code, _ = echo(command, folder=project, variables={"PYTEST_ADDOPTS": "", "GPU_DAY_SLOW": "", **variables})
    if not file.exists():
        raise RuntimeError(f"pytest ended with {code} and wrote no verdicts")
    return code, json.loads(file.read_text(encoding="utf-8"))


def _for_a_rehearsal(place: Place) -> Sequence[str]:
    """Nothing on a GPU. A CPU that others use would make runs invalid, and twice as slow as the baseline's."""
    wide = ("--llmperf-guards=none", "--llmperf-tolerate=tpot:300%", "--llmperf-catch=tpot:400%")
    return () if place.is_cuda else wide


def _project(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in (("pytest.ini", "[pytest]\n"), ("conftest.py", CONFTEST), ("test_perf.py", TESTS)):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def _check_valid(place: Place, results: Results, name: str, verdicts: dict[str, Any], *, tests: int) -> None:
    """So many tests of ``loop`` have figures, as many of ``graph`` where there are graphs, and no cell is invalid."""
    found = list(_values(verdicts, "tpot_ms"))
    by_graph = sum("graph" in test for test, _ in found)
    invalid = [cell["sentence"] for cell in _cells(verdicts) if cell["outcome"] == "invalid"]
    results.compare(f"{name}: tests by loop", expected=tests, found=len(found) - by_graph)
    if place.is_cuda:
        results.compare(f"{name}: tests by graph", expected=tests, found=by_graph)
    else:
        results.skip(f"{name}: tests by graph", NEEDS_CUDA)
    told = f"{len(invalid)} of {len(_cells(verdicts))} {'; '.join(invalid[:1])}".strip()
    results.compare(f"{name}: invalid cells", expected="0 of some", found=told, holds=bool(found) and not invalid)


def _tests(verdicts: dict[str, Any]) -> list[dict[str, Any]]:
    return list(verdicts["tests"])


def _cells(verdicts: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for test in _tests(verdicts) for cell in test["cells"]]


def _values(verdicts: dict[str, Any], metric: str) -> Iterator[tuple[str, float]]:
    for test in _tests(verdicts):
        for cell in test["cells"]:
            if cell["metric"] == metric and cell["value"] is not None:
                yield test["test"], float(cell["value"])


def _outcomes(cells: Sequence[dict[str, Any]]) -> str:
    return ", ".join(cell["outcome"] for cell in cells) or "not measured"
