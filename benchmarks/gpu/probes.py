"""Single questions about CUDA, NVML and the profiler that only a device answers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu.process import echo
from gpu.results import NEEDS_CUDA, Results
from gpu.step import PYTEST, Place

if TYPE_CHECKING:
    import torch

    from pytest_llmperf.engines.executions.execution import Execution
    from pytest_llmperf.measure.bench import Bench
    from pytest_llmperf.storage.schema import TestResult

TINY = "synthetic:tiny"
OUTPUT_TOKENS = 16
MIB = 1 << 20
KERNELS = 200
IDLE_S = (0, 5, 10)
STREAMS = 4


def processes(place: Place, results: Results) -> None:
    """NVML's list of processes: the run's own are no strangers to each other, and one of another run is."""
    from pytest_llmperf.system.run_processes import begin_run, begin_use

    begin_run()
    begin_use()
    with _context(place.device):
        ours, told = _asked(place.device)
        results.measured("how NVML names this process", told)
        results.compare("strangers, of a process alone", expected=0, found=ours)
        with _holder(place.device):  # a child, which holds a context
            results.compare(
                "strangers, of a parent whose child has a context", expected=0, found=_asked(place.device)[0]
            )
        results.compare("strangers, of a child", expected="0", found=_ask_in_child(place.device))
        # What is no descendant of the outermost process is a stranger: a child that is told of no run asks.
        with _holder(place.device):
            alone = _ask_in_child(place.device, LLMPERF_RUN_PID="")
        results.compare("strangers, beside a process of another run", expected="1", found=alone)


@contextmanager
def _context(device: str) -> Iterator[None]:
    """Hold a context on the device."""
    import torch

    held = torch.ones(1, device=device)
    yield
    del held


def _asked(device: str) -> tuple[int | None, str]:
    """How many strangers the plugin counts, and how NVML names this process."""
    from pytest_llmperf.hardware.environment import nvml_handle
    from pytest_llmperf.hardware.gpu_monitor import other_processes

    with nvml_handle(device) as (nvml, handle):
        told = [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        named = "by our id" if os.getpid() in told else "by another id, as of a host" if told else "not at all"
        return other_processes(nvml, handle), f"{named}: {len(told)} processes"


_HOLD = "import sys, torch; held = torch.ones(1, device=sys.argv[1]); print('ready', flush=True); input()"
_ASK = "import sys; from gpu import probes; probes.tell_strangers(sys.argv[1])"


@contextmanager
def _holder(device: str) -> Iterator[None]:
    """A child that holds a context until the block ends."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", _HOLD, device], stdin=pipe, stdout=pipe, text=True) as holder:
        if holder.stdout is None or holder.stdout.readline() != "ready\n":
            raise RuntimeError("the process that was to hold a context has ended")
        yield
        holder.communicate("\n")


def _ask_in_child(device: str, **variables: str) -> str:
    """How many strangers a child counts: the last word that it says."""
    path = os.pathsep.join(sys.path)
    _, said = echo([sys.executable, "-c", _ASK, device], variables={"PYTHONPATH": path, **variables})
    return said.split()[-1] if said.split() else "no answer"


def tell_strangers(device: str) -> None:
    """What such a child does."""
    with _context(device):
        print(_asked(device)[0])


def workspaces(place: Place, results: Results) -> None:
    """What a product on new streams leaves allocated, and whether our figures of memory depend on what ran before."""
    bench = _bench(place)
    executions = ("loop", "graph") if place.is_cuda else ("loop",)
    before = [_memory(bench, execution) for execution in executions]
    if place.is_cuda:
        for streams, left in enumerate(_left_by_products(place.device), start=1):
            results.measured(f"MiB left allocated after a product on {streams} new streams", left)
    else:
        results.skip("products on new streams, and figures of graphs", NEEDS_CUDA)
    _time_products(bench)
    for execution, first in zip(executions, before, strict=True):
        for metric, value in _memory(bench, execution).items():
            results.compare(f"{execution}: {metric} before and after products", expected=first[metric], found=value)


def _left_by_products(device: str) -> Iterator[float]:
    """MiB that stay allocated, more after each stream: cuBLAS keeps a workspace for each of them."""
    import torch

    matrix = torch.ones(512, 512, device=device, dtype=torch.bfloat16)
    before = torch.cuda.memory_allocated()
    for _ in range(STREAMS):
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's own
        with torch.cuda.stream(stream):
            matrix @ matrix
        torch.cuda.synchronize()
        yield (torch.cuda.memory_allocated() - before) / MIB


def _time_products(bench: Bench) -> None:
    """Each timing captures on a stream of its own."""
    import torch

    from pytest_llmperf.measure.kernel import KernelTimer

    timer = KernelTimer(bench.device, bench.clock)
    matrix = torch.ones(64, 64, device=bench.device)
    for _ in range(STREAMS):
        timer(torch.mm, matrix, matrix, repetitions=2, warmup=1)


def _memory(bench: Bench, execution: str) -> dict[str, object]:
    """The figures of memory that gate."""
    result = _measured(bench, execution)
    metrics = ("prefill_peak_allocated", "decode_peak_allocated", "graph_memory")
    return {name: result.value(name) for name in metrics if name != "graph_memory" or execution == "graph"}


def _bench(place: Place) -> Bench:
    from pytest_llmperf.measure.bench import Bench

    return Bench(place.device)


def _measured(bench: Bench, execution: str | Execution) -> TestResult:
    """A short decode of a tiny model."""
    from pytest_llmperf import ModelSpec
    from pytest_llmperf.measure.generation import Plan

    plan = Plan(batch_size=1, input_tokens=8, output_tokens=OUTPUT_TOKENS, execution=execution, requests=2,
                warmup_cap=2)  # fmt: skip
    loaded = bench.models.get(ModelSpec(TINY, "bf16"))
    return bench.measure(loaded, plan, test=str(execution), run_id="gpu day")


def synchronizations(place: Place, results: Results) -> None:
    """Waits for the device by token, of each way to decode; kernels beside them."""
    bench = _bench(place)
    found = {name: _measured(bench, name) for name in ("generate", "loop", "graph")}
    waits = {name: result.value("syncs_per_token") for name, result in found.items()}
    for name, result in found.items():
        results.measured(f"{name}: kernels a token", result.value("kernel_launches_per_token"))
    at_least_one = isinstance(waits["generate"], int | float) and waits["generate"] >= 1
    results.compare("generate: waits a token", expected="1 or more", found=waits["generate"], holds=at_least_one)
    for name in ("loop", "graph"):
        results.compare(f"{name}: waits a token", expected=0, found=waits[name])


def cudagraph_skips(place: Place, results: Results) -> None:
    """Inductor's own graphs: in ``reduce-overhead`` it may silently run without."""
    from torch._dynamo.utils import counters

    from pytest_llmperf import Compile, ModelSpec
    from pytest_llmperf.engines.executions.execution import unnoticed
    from pytest_llmperf.measure.prompt import random_prompt

    bench = _bench(place)
    loaded = bench.models.get(ModelSpec(TINY, "bf16"))
    prompt = random_prompt(loaded.model.config, batch_size=1, input_tokens=8, seed=0).to(place.device)
    with Compile(mode="reduce-overhead").open(loaded.model, prompt, OUTPUT_TOKENS, bench.clock) as opened:
        opened.request(OUTPUT_TOKENS, unnoticed)
        skips = counters["inductor"]["cudagraph_skips"]
    results.compare("reduce-overhead: cudagraph_skips", expected=0, found=skips)


def profile_eager(place: Place, results: Results) -> None:
    """Kernels that a profile has of those that were launched, after the device was idle."""
    import torch

    ones = torch.ones(1 << 10, device=place.device)
    _profiles(place, results, "eager", partial(_add_often, ones))


def profile_graph(place: Place, results: Results) -> None:
    """The same of a replayed graph, whose kernels have one launch together."""
    import torch

    from pytest_llmperf.hardware.cuda_graph import captured
    from pytest_llmperf.hardware.device import resolve_device

    device = resolve_device(place.device)
    ones = torch.ones(1 << 10, device=device)
    with captured(device, lambda: ones.add_(1), times=KERNELS) as graph:
        _profiles(place, results, "graph", graph.replay)


def _add_often(tensor: torch.Tensor) -> None:
    for _ in range(KERNELS):
        tensor.add_(1)


def _profiles(place: Place, results: Results, kind: str, work: Callable[[], object]) -> None:
    """Profile known work after each idle time, as a measured decode is profiled."""
    launched = KERNELS if kind == "eager" else 1
    for idle_s in IDLE_S:
        time.sleep(idle_s)
        kernels, launches = profiled(place.device, work)
        after = f"{kind}, after {idle_s} s idle"
        results.compare(f"{after}: kernels", expected=KERNELS, found=kernels)
        results.compare(f"{after}: launches", expected=launched, found=launches)


def profiled(device: str, work: Callable[[], object]) -> tuple[int, int]:
    """Kernels on the device and launches on the host, as the plugin's own profiler has them."""
    from pytest_llmperf.hardware.clock import clock_for
    from pytest_llmperf.hardware.device import resolve_device
    from pytest_llmperf.hardware.profiler import profiler
    from pytest_llmperf.measure.cuda_activity import events_of

    os.environ.setdefault("TEARDOWN_CUPTI", "1")
    clock = clock_for(resolve_device(device))
    clock.synchronize()
    profile = profiler(use_device="cuda")
    with profile:
        work()
        clock.synchronize()
    events = events_of(profile.kineto_results.events())
    return sum(event.is_kernel for event in events), sum(event.is_launch for event in events)


def captures(place: Place, results: Results) -> None:
    """A capture that fails and one that holds nothing leave a device that works."""
    import torch

    from pytest_llmperf.measure.kernel import KernelTimer

    timer = KernelTimer.on(place.device)
    ones = torch.ones(1 << 16, device=place.device)
    for name, call in (("item", _item), ("synchronize", _synchronize), ("nothing", _nothing)):
        reason = timer(call, ones, repetitions=2, warmup=1).graph_reason
        results.compare(f"capture of {name}", expected="a reason", found=reason, holds=bool(reason))
        results.compare(f"after {name}: empty_cache", expected="works", found=_outcome(torch.cuda.empty_cache))
        graph = timer(torch.add, ones, 1, repetitions=2, warmup=1).graph_used
        results.compare(f"after {name}: another graph", expected=True, found=graph)


def _item(tensor: torch.Tensor) -> float:
    return float(tensor.sum().item())


def _synchronize(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    torch.cuda.synchronize()
    return tensor + 1


def _nothing(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return "works"


KILLS_THE_DEVICE = """
import pytest
import torch


@pytest.mark.parametrize("llm", ["bf16"], indirect=True)
class TestDevice:
    def test_before(self, llm, llmperf):
        llmperf.generate(llm)

    def test_kills(self, llm, llmperf):
        torch.zeros(4, device=llm.model.device)[torch.full((1,), 9, device=llm.model.device)].sum().item()

    def test_after(self, llm, llmperf):
        llmperf.generate(llm)
"""
SHORT = ("--llmperf-model=synthetic:tiny", "--llmperf-input-tokens=8", "--llmperf-output-tokens=8",
         "--llmperf-requests=2", "--llmperf-warmup=1", "--llmperf-explain=off")  # fmt: skip


def dead_device(place: Place, results: Results) -> None:
    """A device-side assert in the second of three tests: the run ends with a summary, and says once what happened."""
    code, said = _kill_the_device(place)
    told = [line for line in said.splitlines() if "died in" in line and "not run" in line]
    _check_ending(results, code, said)
    results.compare("lines that say 'died in' and 'not run'", expected=1, found=len(told))
    results.measured("what is said", "; ".join(told) or "nothing")


def dead_device_isolated(place: Place, results: Results) -> None:
    """The same with isolation: the test fails, and the tests before and after it are measured."""
    code, said = _kill_the_device(place, "--llmperf-isolate")
    _check_ending(results, code, said)
    for name in ("test_before", "test_after"):
        passed = [line for line in said.splitlines() if name in line and "PASSED" in line]
        results.compare(name, expected="PASSED", found=passed[0] if passed else "not so", holds=bool(passed))


def _kill_the_device(place: Place, *arguments: str) -> tuple[int, str]:
    folder = _project(place.folder / f"dead{len(arguments)}", KILLS_THE_DEVICE)
    command = [*PYTEST, "-v", "-rA", "--llmperf", f"--device={place.device}", *SHORT, *arguments]
    return echo(command, folder=folder, variables={"PYTEST_ADDOPTS": ""})


def _check_ending(results: Results, code: int, said: str) -> None:
    """A run that did not get as far as its tests says nothing about how it ends."""
    results.compare("exit code", expected=1, found=code)
    if "test_kills" not in said:
        raise RuntimeError("the test that kills the device was not run")
    results.compare(
        "lines of summary", expected=1, found=len(re.findall(r"^llmperf: \d+ tests?, ", said, re.MULTILINE))
    )
    results.compare("lines of an internal error", expected=0, found=said.count("INTERNALERROR"))


def _project(folder: Path, test: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (folder / "test_device.py").write_text(test, encoding="utf-8")
    return folder


OF_CUDA: Sequence[Callable[[Place, Results], None]] = (
    profile_eager, profile_graph, synchronizations, cudagraph_skips, captures, dead_device, dead_device_isolated,
)  # fmt: skip
"""Probes that nothing but CUDA can answer."""
