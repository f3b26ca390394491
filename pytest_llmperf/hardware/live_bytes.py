"""Bytes of live tensors and their peak, by following storages: works without an allocator, for fake tensors too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from weakref import ref

from pytest_llmperf.system.tensors import storage_id

if TYPE_CHECKING:
    import torch


class LiveBytes:
    """Bytes of the storages that were followed and are still alive.

    What a kernel allocates for itself, and what an allocator adds between tensors, is not among them.

    Args:
        device_type: only tensors on devices of this type are followed, such as ``cuda``.
        block_bytes: each storage counts in blocks of this size.
    """

    def __init__(self, device_type: str, block_bytes: int = 1) -> None:
        self.alive = 0
        self.peak = 0
        self._device_type = device_type
        self._block_bytes = block_bytes
        self._followed: dict[int, tuple[ref[Any], int]] = {}
        """A weak reference to each storage and its bytes, by the storage's identity."""

    def begin_peak(self) -> None:
        """Begin a phase: its peak is at least what is alive now."""
        self.peak = self.alive

    def follow(self, tensors: Iterable[torch.Tensor]) -> None:
        """Follow the storages of tensors until they are freed; known ones only if they have another size now."""
        for tensor in tensors:
            if tensor.device.type == self._device_type:
                self._follow(tensor)

    def _follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage_id(tensor), self._rounded(storage.nbytes())
        if key in self._followed:
            known, before = self._followed[key]
            self._followed[key] = known, size
            self._add(size - before)
        else:
            self._followed[key] = ref(storage, lambda _gone: self._forget(key)), size
            self._add(size)

    def _forget(self, key: int) -> None:
        _, size = self._followed.pop(key)
        self.alive -= size

    def _add(self, size: int) -> None:
        self.alive += size
        self.peak = max(self.peak, self.alive)

    def _rounded(self, size: int) -> int:
        return -(-size // self._block_bytes) * self._block_bytes
