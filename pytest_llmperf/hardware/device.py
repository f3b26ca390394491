"""Resolve device names such as ``auto``, ``cuda:1`` or ``fake-cuda``."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

from pytest_llmperf.errors import MissingDependency, UsageError

NUMBERED = ("cuda", "xpu")
"""Device kinds that a machine can have several of."""
ACCELERATORS = (*NUMBERED, "mps")
FAKE = "fake-"
"""Begins the name of a device that is not here: its tensors have shapes and no values."""
_FORM = re.compile(r"auto|cpu|mps|fake-(?:cpu|cuda|xpu)|(cuda|xpu)(?::\d+(?:,\1:\d+)*)?")


def check_device_name(name: str) -> None:
    """Reject an invalid device name, without importing torch.

    Raises:
        UsageError: the name has none of the known forms.
    """
    if not _FORM.fullmatch(name):
        raise UsageError(
            f"unknown device {name!r}: expected auto, cpu, cuda, cuda:N, xpu, xpu:N, mps, fake-cpu, "
            "fake-cuda, fake-xpu, or one per worker, such as cuda:0,cuda:2"
        )


def resolve_device(name: str, *, fakes: bool = False) -> str:
    """Resolve a name to a torch device, such as ``cpu`` or ``cuda:0``; the name of a fake device stays as it is.

    ``auto`` is the first available accelerator, else the CPU. Of several names, the first is used. Indices count
    visible devices; a kind without an index is the process's current device.

    Args:
        name: the name.
        fakes: whether the device may be a fake one.

    Raises:
        UsageError: the name is unknown, or torch does not see the device, or is not built for a fake one.
        MissingDependency: torch is not installed.
    """
    check_device_name(name)
    if is_fake(name) and not fakes:
        raise UsageError(f"device {name!r} is none, and this needs one: expected auto, cpu, cuda, xpu or mps")
    require_models_extra()
    first, *_ = map(_resolved, _found(name).split(","))
    return first


def is_fake(device: str) -> bool:
    """Whether a device's tensors have no values."""
    return device.startswith(FAKE)


def torch_device(device: str) -> str:
    """The torch device that a fake device stands for, such as ``cuda:0``; any other name as it is."""
    kind = device.removeprefix(FAKE)
    return f"{kind}:0" if is_fake(device) and kind in NUMBERED else kind


def worker_devices(name: str) -> list[str]:
    """Devices for pytest-xdist workers, one each: the named ones in order, or all visible devices of a kind.

    This only counts devices: querying more would create a context and take device memory.

    Raises:
        UsageError: the name is unknown, or torch does not see the device.
        MissingDependency: torch is not installed.
    """
    check_device_name(name)
    require_models_extra()
    name = _found(name)
    numbered = [f"{name}:{index}" for index in range(_count(name))] if name in NUMBERED else []
    return [_resolved(one) for one in dict.fromkeys(numbered or name.split(","))]


def require_models_extra() -> None:
    """Check that the packages for measuring models are installed.

    Raises:
        MissingDependency: a package is not installed.
    """
    for package in ("torch", "transformers", "accelerate"):
        if find_spec(package) is None:
            raise MissingDependency(package, extra="models", purpose="measuring a model")


def _found(name: str) -> str:
    return next((kind for kind in ACCELERATORS if _count(kind)), "cpu") if name == "auto" else name


def _resolved(name: str) -> str:
    if is_fake(name):
        _check_build(name)
        return name
    if name == "cpu":
        return name
    kind, _, index = name.partition(":")
    count = _count(kind)
    if int(index or 0) >= count:
        raise UsageError(_not_here(name, kind, count))
    return kind if kind == "mps" else f"{kind}:{index or _current(kind)}"


def _check_build(name: str) -> None:
    """Check that torch is built for the kind of device. Other builds cannot choose that device's operators.

    Raises:
        UsageError: it is built without.
    """
    import torch

    kind = name.removeprefix(FAKE)
    built: Any = {"cuda": torch.version.cuda or torch.version.hip, "xpu": torch.version.xpu}
    if built.get(kind, "always") is None:
        raise UsageError(
            f"device {name!r} needs torch built for {kind}, found {torch.__version__}: install that build, which needs "
            "no driver and no device, or use fake-cpu"
        )


def _count(kind: str) -> int:
    import torch

    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module: Any = getattr(torch, kind)
    return int(module.device_count()) if module.is_available() else 0


def _current(kind: str) -> int:
    import torch

    module: Any = getattr(torch, kind)
    return int(module.current_device())


def _not_here(name: str, kind: str, count: int) -> str:
    import torch

    found = f"{count} {kind} devices" if count else f"no {kind} device"
    return f"device {name!r} is not available: torch {torch.__version__} sees {found}; choose another with --device"
