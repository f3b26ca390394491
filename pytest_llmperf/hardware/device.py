"""Which device to measure on."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

from pytest_llmperf.errors import MissingDependency, UsageError

NUMBERED = ("cuda", "xpu")
"""Kinds of which a machine may have several."""
ACCELERATORS = (*NUMBERED, "mps")
_FORM = re.compile(r"auto|cpu|mps|(cuda|xpu)(?::\d+(?:,\1:\d+)*)?")


def check_device_name(name: str) -> None:
    """Refuse what cannot be a device, without importing torch.

    Raises:
        UsageError: the name is none of the known forms.
    """
    if not _FORM.fullmatch(name):
        raise UsageError(
            f"unknown device {name!r}: expected auto, cpu, cuda, cuda:N, xpu, xpu:N, mps, or several such as "
            "cuda:0,cuda:2, for a worker each"
        )


def resolve_device(name: str) -> str:
    """The device of torch that ``name`` stands for, such as ``cpu`` or ``cuda:0``.

    ``auto`` is the first accelerator that works, else the CPU; of several names it is the first. Indices count the
    visible devices; a kind alone is the process's current device of it.

    Raises:
        UsageError: the name is unknown, or torch sees no such device here.
        MissingDependency: torch is not installed.
    """
    check_device_name(name)
    require_models_extra()
    first, *_ = map(_resolved, _found(name).split(","))
    return first


def worker_devices(name: str) -> list[str]:
    """The devices that workers get, one each: those that are named, in their order, or all that torch sees of a kind.

    They are only counted: a process that asks for more of a device takes memory on it.

    Raises:
        UsageError: the name is unknown, or torch sees no such device here.
        MissingDependency: torch is not installed.
    """
    check_device_name(name)
    require_models_extra()
    name = _found(name)
    numbered = [f"{name}:{index}" for index in range(_count(name))] if name in NUMBERED else []
    return [_resolved(one) for one in dict.fromkeys(numbered or name.split(","))]


def require_models_extra() -> None:
    """Refuse to go on without the packages that models need.

    Raises:
        MissingDependency: one is not installed.
    """
    for package in ("torch", "transformers", "accelerate"):
        if find_spec(package) is None:
            raise MissingDependency(package, extra="models", purpose="measuring a model")


def _found(name: str) -> str:
    return next((kind for kind in ACCELERATORS if _count(kind)), "cpu") if name == "auto" else name


def _resolved(name: str) -> str:
    if name == "cpu":
        return name
    kind, _, index = name.partition(":")
    count = _count(kind)
    if int(index or 0) >= count:
        raise UsageError(_not_here(name, kind, count))
    return kind if kind == "mps" else f"{kind}:{index or _current(kind)}"


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
    return f"device {name!r} is not here: torch {torch.__version__} sees {found}. Choose another with --device"
