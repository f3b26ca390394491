"""Decode's share of memory bandwidth: each step must read the weights and the KV cache once."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from pytest_llmperf.hardware.clock import MS_PER_S
from pytest_llmperf.measure.cache_size import CacheSize
from pytest_llmperf.measure.peaks import NO_BANDWIDTH
from pytest_llmperf.metrics import NO_CACHE, NO_DECODE, Figure
from pytest_llmperf.models.experts import has_experts
from pytest_llmperf.models.own_model import config_of
from pytest_llmperf.system.tensors import storage_bytes

if TYPE_CHECKING:
    from pytest_llmperf.measure.generation import Measurement, Plan

_READ_BY_PREFILL_ALONE = ("is_encoder_decoder", "vision_config", "audio_config")


def bandwidth_share(model: Any, measured: Measurement, *, weights: int, bandwidth: float | None) -> Figure:
    """Compute the share of the copy bandwidth that decode reached.

    (weights + mean cache) / TPOT / copy bandwidth, in bytes and seconds: the roofline of memory-bound work (Williams,
    Waterman and Patterson 2009), as gpt-fast reports it. Shares above 100 % are possible: a copy also writes, and a
    CPU's cache may hold a small model.

    Args:
        model: the measured model.
        measured: the measurement; its median TPOT and its cache size after the last token are used.
        weights: bytes of all of the model's weights.
        bandwidth: the device's copy bandwidth, in bytes per second.
    """
    tpots = [tpot for times in measured.requests if (tpot := times.tpot_ms)]
    size = measured.counts.cache if measured.counts else None
    reason = _why_not(model, measured, has_decode=bool(tpots), has_bandwidth=bool(bandwidth))
    if reason or size is None:
        return Figure("bandwidth_share", None, reason or NO_CACHE)
    read = weights - _unread_bytes(model) + _mean_cache_bytes(size, measured.plan)
    return Figure("bandwidth_share", MS_PER_S * read / median(tpots) / (bandwidth or 1.0), count=len(tpots))


def _why_not(model: Any, measured: Measurement, *, has_decode: bool, has_bandwidth: bool) -> str:
    reasons = {
        NO_DECODE: not has_decode,
        NO_BANDWIDTH: not has_bandwidth,
        "which of the model's weights are its embedding is unknown": not hasattr(model, "get_output_embeddings"),
        "a decode step does not read the weights of an encoder": any(
            getattr(config_of(model), name, None) for name in _READ_BY_PREFILL_ALONE
        ),
        "a mixture of experts reads only some of its weights per token": has_experts(model),
        "assisted decoding: a step makes several tokens": _is_assisted(measured),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _is_assisted(measured: Measurement) -> bool:
    counted = any(figure.metric == "acceptance_share" for figure in measured.figures)
    return counted or any(times.several_at_a_time for times in measured.requests)


def _unread_bytes(model: Any) -> int:
    """Bytes of the input embedding, of which a step reads one row per sequence; 0 if it is also the output head."""
    head = getattr(model.get_output_embeddings(), "weight", None)
    heads = [] if head is None else [head]
    return storage_bytes([model.get_input_embeddings().weight, *heads]) - storage_bytes(heads)


def _mean_cache_bytes(size: CacheSize, plan: Plan) -> float:
    """Mean cache bytes that a step reads.

    Step i reads input + i positions, i from 1 to output - 1. The size is known after the last step. Recurrent states
    have the same size in each step. So has a sliding window that was full at the end; if it filled up during decode,
    the mean is too high by what was missing.
    """
    mean = (plan.input_tokens + plan.output_tokens / 2) / (plan.input_tokens + plan.output_tokens - 1)
    return size.total_bytes - size.growing_bytes * (1 - mean)
