"""Structure of a model in memory: which weights it has, without reading them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SHOWN_DIGITS = 12


def structure_digest(model: torch.nn.Module) -> str:
    """Digest of the names, classes, shapes and dtypes of a model's parameters and buffers.

    It reads no weights and no code: a layer of the same weights that computes them otherwise is what tests compare.
    Running the model does not change it. Therefore it leaves out buffers that are not persistent, because a model makes
    them anew as it runs, and the form of bitsandbytes weights, because their first forward packs them.

    Returns:
        The first 12 hexadecimal digits of a SHA-256.
    """
    lines = (line for name, module in model.named_modules() for line in _lines(name, module))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:SHOWN_DIGITS]


def _lines(name: str, module: torch.nn.Module) -> Iterator[str]:
    kind = type(module)
    if kind.__module__.startswith("bitsandbytes"):
        yield f"{name} {kind.__qualname__} {module.extra_repr()}"
        return
    passing = module._non_persistent_buffers_set  # noqa: SLF001  # torch has no public API for it
    for kept in (module._parameters, module._buffers):  # noqa: SLF001  # the public ones leave out tied weights
        for own, tensor in kept.items():
            if tensor is not None and own not in passing:
                yield f"{name}.{own} {type(tensor).__qualname__} {tuple(tensor.shape)} {tensor.dtype}"
