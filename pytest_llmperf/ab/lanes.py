"""Lanes of a comparison: the devices, or sets of a CPU's cores, that measure blocks side by side."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_llmperf.errors import UsageError
from pytest_llmperf.hardware.device import check_device_name
from pytest_llmperf.text import printable

OPTION = "--device"
_OF_PYTEST = ("--device", "--llmperf-device")
_CORES = re.compile(r"cpu:(\d+(?:-\d+)?(?:\+\d+(?:-\d+)?)*)")


@dataclass(frozen=True)
class Lane:
    """One device of a comparison; without a name, the one that pytest's arguments choose."""

    name: str = ""
    """As the user wrote it: ``cuda:1``, ``cpu:0-3``."""
    device: str = ""
    """Pytest's name of the device."""
    cores: frozenset[int] | None = None
    """Cores that its processes run on; ``None`` for all."""

    @property
    def arguments(self) -> list[str]:
        """Arguments that keep pytest on the device."""
        return [f"--llmperf-device={self.device}"] if self.device else []


ANY_DEVICE = Lane()


def parse_lanes(text: str | None, arguments: Sequence[str]) -> tuple[Lane, ...]:
    """Parse the devices of a comparison, such as ``cuda:0,cuda:1`` or ``cpu:0-3,cpu:4-7``.

    Args:
        text: comma-separated devices; ``None`` for the one that pytest's arguments choose. A core list such as
            ``cpu:0-3+8-11`` has several ranges.
        arguments: pytest's.

    Raises:
        UsageError: a device is malformed, or named twice; cores do not exist, overlap, or cannot be chosen on this
            system; devices are of different kinds; or pytest's arguments name a device as well.
    """
    if text is None:
        return (ANY_DEVICE,)
    for word in arguments:
        if word.partition("=")[0] in _OF_PYTEST:
            raise UsageError(f"{OPTION} {printable(text)} and, after --, {printable(word)}: name the device once")
    lanes = tuple(_lane(name.strip()) for name in text.split(","))
    if len(lanes) > 1:
        _refuse_unlike(lanes)
        _refuse_shared(lanes)
    return lanes


def _lane(name: str) -> Lane:
    if found := _CORES.fullmatch(name):
        return Lane(name, "cpu", _cores(name, found[1]))
    told = printable(f"{OPTION} {name}")
    if name.startswith("cpu:"):
        raise UsageError(f"{told}: expected a range of cores such as cpu:0-3, or several such as cpu:0-3+8-11")
    try:
        check_device_name(name)
    except UsageError as error:
        raise UsageError(f"{told}: expected a device such as cuda:0, or cores such as cpu:0-3") from error
    return Lane(name, name)


def _cores(name: str, text: str) -> frozenset[int]:
    """Return the named cores; all of them exist, and this process may use them."""
    if not hasattr(os, "sched_getaffinity"):
        raise UsageError(f"{OPTION} {name}: this system cannot keep a process on some cores: expected {OPTION} cpu")
    usable, found = os.sched_getaffinity(0), set[int]()
    for part in text.split("+"):
        low, _, high = part.partition("-")
        first, last = int(low), int(high or low)
        if first > last:
            raise UsageError(f"{OPTION} {name}: core {first} is above {last}: expected the smaller one first")
        if not usable.issuperset({first, last}) or not usable.issuperset(range(first, last + 1)):
            cores = ", ".join(map(str, sorted(usable)))
            raise UsageError(f"{OPTION} {name}: expected cores that this process may use, which are {cores}")
        found |= set(range(first, last + 1))
    return frozenset(found)


def _refuse_unlike(lanes: Sequence[Lane]) -> None:
    """Reject several devices that are not numbered devices of one kind, or sets of cores of one size."""
    for lane in lanes:
        if lane.cores is None and ":" not in lane.device:
            raise UsageError(
                f"{OPTION} {lane.name}, one of {len(lanes)}: expected each to have a number or cores, such as "
                "cuda:0,cuda:1 or cpu:0-3,cpu:4-7"
            )
    first = lanes[0]
    for lane in lanes[1:]:
        if lane.device.partition(":")[0] != first.device.partition(":")[0]:
            raise UsageError(f"{OPTION} {first.name},{lane.name}: expected devices of one kind")
        if lane.cores and first.cores and len(lane.cores) != len(first.cores):
            sizes = f"{len(first.cores)} and {len(lane.cores)} cores"
            raise UsageError(f"{OPTION} {first.name},{lane.name}: found {sizes}: expected as many in each set")


def _refuse_shared(lanes: Sequence[Lane]) -> None:
    devices, cores = set[str](), set[int]()
    for lane in lanes:
        if lane.cores is None and lane.device in devices:
            raise UsageError(f"{OPTION}: {lane.name} is named twice: expected each device once")
        if shared := cores & (lane.cores or set()):
            raise UsageError(
                f"{OPTION}: {lane.name} shares core {min(shared)} with another set: expected disjoint sets"
            )
        devices.add(lane.device)
        cores |= lane.cores or set()
