"""``cuda_timer`` beside other timers, and what the device reaches beside what such devices are known to reach."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from gpu.results import NEEDS_CUDA, Results
from gpu.step import Place

if TYPE_CHECKING:
    import torch

    from pytest_llmperf.measure.kernel import KernelTimer

REPEATS = 5
BANDS = ((0.050, 0.02), (0.010, 0.05))
"""From so many milliseconds on, a call's time must agree within this share; below, the offset is told."""
MODES = ("eager, warm", "eager, flushed", "graph, warm", "graph, flushed")
STAND_INS = 20
"""Calls of the loop that stands for a timer on a CPU."""
NOT_JUDGED = "on a CPU: not judged"

REACHED: Mapping[str, tuple[float, tuple[float, float]]] = {
    "H200": (4.3e12, (769e12, 798e12)),
    "H100": (3.0e12, (798e12, 798e12)),
}
"""Bytes that a copy reads and writes by second, and operations of an 8192^3 bf16 product by second, least and most, as
seen on such devices by other programs."""
REACHED_WITHIN = 0.1

Call = Callable[[], object]
CallOf = Callable[[int, str], Call]
"""Makes a call of one size on a device."""


@dataclass(frozen=True)
class Peer:
    """Another timer: milliseconds of one call."""

    name: str
    time_ms: Callable[[Call], float]


def add(place: Place, results: Results) -> None:
    """Bound by memory."""
    _compare(place, results, _add, (1 << 18, 1 << 24, 1 << 27), cpu_sizes=(1 << 14, 1 << 17, 1 << 20))


def softmax(place: Place, results: Results) -> None:
    """A reduction."""
    _compare(place, results, _softmax, (256, 4096, 16384), cpu_sizes=(64, 256, 512))


def product(place: Place, results: Results) -> None:
    """Bound by arithmetic."""
    _compare(place, results, _product, (512, 2048, 8192), cpu_sizes=(64, 128, 256))


def gemm_4bit(place: Place, results: Results) -> None:
    """What 4-bit models run, at one token."""
    _compare(place, results, _gemm_4bit, (1024, 4096, 16384), cpu_sizes=(64, 128, 256))


def limits(place: Place, results: Results) -> None:
    """Copy bandwidth and the rate of a large product, by the plugin's own roofline."""
    import torch

    from pytest_llmperf.measure.kernel import KernelTimer

    timer = KernelTimer.on(place.device)
    found = timer.limits("bfloat16")
    name = torch.cuda.get_device_name(timer.device) if place.is_cuda else "a CPU"
    known = next((figures for part, figures in REACHED.items() if part in name), None)
    rates = {"copy, TB/s": found.copy_bytes_per_s, "bf16 product, TFLOP/s": found.matrix_operations_per_s}
    if known is None:
        for what, rate in rates.items():
            results.measured(what, f"{rate / 1e12:.3g}", why=f"nothing is known of {name}")
        return
    copied, (least, most) = known
    _near(results, "copy, TB/s", found.copy_bytes_per_s, copied, copied)
    _near(results, "bf16 product, TFLOP/s", found.matrix_operations_per_s, least, most)


def _near(results: Results, what: str, rate: float, least: float, most: float) -> None:
    low, high = least * (1 - REACHED_WITHIN), most * (1 + REACHED_WITHIN)
    results.compare(what, expected=f"{low / 1e12:.3g} to {high / 1e12:.3g}", found=f"{rate / 1e12:.3g}",
                    holds=low <= rate <= high)  # fmt: skip


def _add(size: int, device: str) -> Call:
    import torch

    numbers = _random(size, device)
    return partial(torch.add, numbers, numbers)


def _softmax(size: int, device: str) -> Call:
    import torch

    return partial(torch.softmax, _random(size, 4096, device), -1)


def _product(size: int, device: str) -> Call:
    import torch

    return partial(torch.mm, _random(size, size, device), _random(size, size, device))


def _gemm_4bit(size: int, device: str) -> Call:
    import bitsandbytes

    packed, state = bitsandbytes.functional.quantize_4bit(_random(size, 4096, device), quant_type="nf4", blocksize=64)
    return partial(bitsandbytes.matmul_4bit, _random(1, 4096, device), packed.t(), quant_state=state)


def _random(*size_and_device: Any) -> torch.Tensor:
    import torch

    *size, device = size_and_device
    return torch.randn(*size, dtype=torch.bfloat16, device=device)


def _compare(
    place: Place, results: Results, make: CallOf, sizes: tuple[int, ...], *, cpu_sizes: tuple[int, ...]
) -> None:
    """A line for each size and mode."""
    from pytest_llmperf.measure.kernel import KernelTimer

    timer = KernelTimer.on(place.device)
    peers = _peers(place)
    for size in sizes if place.is_cuda else cpu_sizes:
        call = make(size, timer.device)
        rounds = [_round(timer, call, peers, ours_first=bool(turn % 2)) for turn in range(REPEATS)]
        for mode in MODES:
            name = f"{make.__name__.strip('_')} {size}, {mode}"
            if mode in peers:
                _judge(place, results, name, [(ours.get(mode), theirs[mode]) for ours, theirs in rounds], peers[mode])
            else:
                results.skip(name, NEEDS_CUDA)


def _round(
    timer: KernelTimer, call: Call, peers: Mapping[str, Peer], *, ours_first: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds by mode: ours, and the peers'."""
    ours = _ours(timer, call) if ours_first else {}
    theirs = {mode: peer.time_ms(call) for mode, peer in peers.items()}
    return ours or _ours(timer, call), theirs


def _ours(timer: KernelTimer, call: Call) -> dict[str, float]:
    found = {}
    for cache, flush in (("warm", False), ("flushed", True)):
        timing = timer(call, flush_l2=flush, name="call")
        found[f"eager, {cache}"] = timing.median_ms
        if timing.graph_median_ms is not None:
            found[f"graph, {cache}"] = timing.graph_median_ms
        else:
            print(f"{cache}: no graph: {timing.graph_reason}")
    return found


def _judge(place: Place, results: Results, name: str, pairs: list[tuple[float | None, float]], peer: Peer) -> None:
    """Compare the median ratio with what the time of the call allows."""
    ratios = [ours / theirs for ours, theirs in pairs if ours is not None]
    peer_ms = median(theirs for _, theirs in pairs)
    within = next((share for at_least_ms, share in BANDS if peer_ms >= at_least_ms), None)
    if len(ratios) < len(pairs):
        results.fail(name, expected=f"{len(pairs)} figures", found=f"{len(ratios)}: the log says why")
        return
    middle = median(ratios)
    told = f"{middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f}) of {1e3 * peer_ms:.4g} us by {peer.name}"
    if not place.is_cuda:
        results.measured(name, told, why=NOT_JUDGED)
    elif within is None:
        results.measured(name, f"{told}: {1e3 * (middle - 1) * peer_ms:+.2f} us", why="too short to be judged")
    else:
        results.compare(name, expected=f"1 within {within:.0%}", found=told, holds=abs(middle - 1) <= within)


def _peers(place: Place) -> dict[str, Peer]:
    """The other timer of each mode that the device has."""
    if not place.is_cuda:
        return {
            "eager, warm": Peer("torch.utils.benchmark", _blocked_autorange_ms),
            "eager, flushed": Peer("a bare loop (stands for triton's do_bench)", _bare_loop_ms),
        }
    from triton.testing import do_bench, do_bench_cudagraph

    flushed = Peer("do_bench", lambda call: float(do_bench(call, warmup=25, rep=50, return_mode="median")))
    return {
        "eager, warm": Peer("torch.utils.benchmark", _blocked_autorange_ms),
        "eager, flushed": flushed,
        "graph, warm": Peer("do_bench_cudagraph", lambda call: float(do_bench_cudagraph(call, return_mode="median"))),
        "graph, flushed": flushed,
    }


def _blocked_autorange_ms(call: Call) -> float:
    from torch.utils.benchmark import Timer

    timer = Timer("call()", globals={"call": call})
    return 1e3 * float(timer.blocked_autorange(min_run_time=0.02).median)


def _bare_loop_ms(call: Call) -> float:
    """Median of calls that each find the cache empty."""
    from pytest_llmperf.hardware.l2_cache import l2_flush

    return median(_flushed_times_ms(call, l2_flush("cpu").run))


def _flushed_times_ms(call: Call, flush: Call) -> Iterator[float]:
    for _ in range(STAND_INS):
        flush()
        start = time.perf_counter()
        call()
        yield 1e3 * (time.perf_counter() - start)
