"""The physical limit of a decode: a step must read the weights and the cache once, and memory has a speed."""

from __future__ import annotations

from functools import cache
from statistics import median
from typing import TYPE_CHECKING, Any

from pytest_llmperf.measure.kernel import copy_bandwidth
from pytest_llmperf.measure.kernel_timing import MS_PER_S
from pytest_llmperf.metrics import NO_DECODE, Figure
from pytest_llmperf.models.model_registry import free_memory

if TYPE_CHECKING:
    from pytest_llmperf.measure.generation import Measurement

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@cache
def spare_bandwidth(device: str) -> float | None:
    """Bytes read and written by second as a copy moves them, measured once a process; ``None`` where it fails.

    To be asked for while the device holds no model; what measuring takes is free afterwards.
    """
    try:
        return copy_bandwidth(device)
    except RuntimeError:  # torch's, which are of several classes where memory is short
        return None
    finally:
        free_memory(device)


def bandwidth_share(model: Any, measured: Measurement, *, weights: int, bandwidth: float | None) -> Figure:
    """The share of the copy bandwidth that decoding reached.

    (weights + mean cache) / TPOT / copy bandwidth, in bytes and seconds: the roofline of work that memory binds
    (Williams, Waterman and Patterson 2009), as gpt-fast reports it. A copy also writes, and a host's cache may hold a
    small model: shares above 100 % are no error.

    Args:
        model: that was measured.
        measured: of which the median request and the cache after its last token count.
        weights: bytes of all of the model's weights.
        bandwidth: of the device, in bytes by second.
    """
    tpots = [tpot for times in measured.requests if (tpot := times.tpot_ms)]
    if reason := _why_not(model, measured, has_decode=bool(tpots), has_bandwidth=bool(bandwidth)):
        return Figure("bandwidth_share", None, reason)
    read = weights - _unread_bytes(model) + _mean_cache_bytes(measured)
    return Figure("bandwidth_share", MS_PER_S * read / median(tpots) / (bandwidth or 1.0), count=len(tpots))


def _why_not(model: Any, measured: Measurement, *, has_decode: bool, has_bandwidth: bool) -> str:
    config = model.config.get_text_config()
    reasons = {
        NO_DECODE: not has_decode,
        "the device's copy bandwidth could not be measured": not has_bandwidth,
        "a kind of cache that is not known here": measured.counts.kv_cache_bytes is None,
        "a mixture of experts reads some of its weights": any(getattr(config, name, None) for name in _EXPERTS),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _unread_bytes(model: Any) -> int:
    """The input embedding, of which a step reads a row a sequence, unless it is the output head as well."""
    embedding, head = model.get_input_embeddings().weight, getattr(model.get_output_embeddings(), "weight", None)
    tied = head is not None and head.data_ptr() == embedding.data_ptr()
    return 0 if tied else int(embedding.nbytes)


def _mean_cache_bytes(measured: Measurement) -> float:
    """Step i reads input + i positions, i from 1 to output - 1; the cache is weighed after the last of them."""
    plan, after = measured.plan, measured.counts.kv_cache_bytes or 0
    return after * (plan.input_tokens + plan.output_tokens / 2) / (plan.input_tokens + plan.output_tokens - 1)
