"""Find out what this machine can measure, by trying it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from pytest_llmperf.engines.executions.dynamo import obstacle
from pytest_llmperf.engines.executions.torch_compile import INDUCTOR
from pytest_llmperf.errors import LlmperfError
from pytest_llmperf.hardware.clock import SynchronizedClock, clock_for
from pytest_llmperf.hardware.device import resolve_device
from pytest_llmperf.hardware.environment import (
    NvmlUnavailableError,
    ask_nvml,
    counted_device_key,
    device_key,
    environment,
    nvml_handle,
    whole_gpu,
)
from pytest_llmperf.hardware.memory import trace_memory
from pytest_llmperf.metrics import Scalar
from pytest_llmperf.models.quantization import QUANTIZATIONS, check_available, compute_dtype


@dataclass(frozen=True)
class Finding:
    """Whether one feature works here."""

    subject: str
    works: bool
    detail: str


def examine(device: str) -> list[Finding]:
    """Check every feature that a measurement on this device may need.

    Raises:
        UsageError: the device does not exist; ``MissingDependency`` without torch.
    """
    found = resolve_device(device)
    facts = environment(found)
    return [
        Finding("device", True, f"{found}: {facts['device_name']}; baseline {device_key(facts)}.json"),
        Finding("counted work", True, _counted(facts)),
        _clock(found),
        *_memory(found),
        _nvml(found),
        _bf16(found),
        *_quantizations(found),
        *_attentions(),
        _compile(found),
    ]


def _counted(facts: Mapping[str, Scalar]) -> str:
    kernels = f"; CPU kernels of bitsandbytes: {facts['cpu_capability']}" if facts.get("cpu_capability") else ""
    return f"on every machine of this kind: baseline {counted_device_key(facts)}.json{kernels}"


def _clock(device: str) -> Finding:
    clock = clock_for(device)
    synchronizes = isinstance(clock, SynchronizedClock)
    return Finding("clock", True, clock.name + (": timed events do not work here" if synchronizes else ""))


def _memory(device: str) -> Iterator[Finding]:
    with trace_memory(device, "probe") as trace:
        pass
    peak = trace.peaks["probe"]
    for subject, value in (
        ("peak allocated", peak.allocated_bytes),
        ("peak reserved", peak.reserved_bytes),
        ("peak RSS", peak.rss_bytes),
    ):
        yield Finding(subject, value is not None, "" if value is not None else peak.reason)


def _nvml(device: str) -> Finding:
    if not device.startswith("cuda"):
        return Finding("NVML", False, "only for NVIDIA devices")
    try:
        with nvml_handle(device) as (nvml, handle):
            limit = ask_nvml(nvml, lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(whole_gpu(nvml, handle)))
            return Finding("NVML", True, "no power limit" if limit is None else f"power limit {limit / 1000:.0f} W")
    except NvmlUnavailableError as error:
        return Finding("NVML", False, str(error))


def _bf16(device: str) -> Finding:
    dtype = str(compute_dtype(QUANTIZATIONS["nf4"], device)).removeprefix("torch.")
    return Finding("bf16", dtype == "bfloat16", f"4-bit and 8-bit models compute in {dtype}")


def _quantizations(device: str) -> Iterator[Finding]:
    for quantization in QUANTIZATIONS.values():
        try:
            check_available(quantization, device)
        except LlmperfError as error:
            yield Finding(f"quantization {quantization.name}", False, str(error))
        else:
            yield Finding(f"quantization {quantization.name}", True, "")


def _attentions() -> Iterator[Finding]:
    from transformers import utils

    yield Finding("attention eager", True, "")
    yield Finding("attention sdpa", True, "")
    for name, available in (
        ("flash_attention_2", "is_flash_attn_2_available"),
        ("flex_attention", "is_torch_flex_attn_available"),
    ):
        check: Callable[[], bool] | None = getattr(utils, available, None)
        works = bool(check and check())
        yield Finding(f"attention {name}", works, "" if works else "transformers reports it as unavailable")


def _compile(device: str) -> Finding:
    needed = "triton" if device.startswith(("cuda", "xpu")) else "a C++ compiler"
    missing = (
        find_spec("triton") is None if needed == "triton" else not (shutil.which("g++") or shutil.which("clang++"))
    )
    reason = f"{needed} is not installed" if missing else obstacle(device, INDUCTOR)
    return Finding("torch.compile", not reason, reason)
