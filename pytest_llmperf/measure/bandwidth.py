"""Decode's share of memory bandwidth: each step must read the weights and the KV cache once."""

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
_READ_BY_PREFILL_ALONE = ("is_encoder_decoder", "vision_config", "audio_config")


@cache
def spare_bandwidth(device: str) -> float | None:
    """Bytes per second that a copy reads and writes, measured once per process; ``None`` where that fails.

    Call it while the device holds no model; the memory it uses is freed afterwards.
    """
    try:
        return copy_bandwidth(device)
    except RuntimeError:  # torch raises several classes of errors when out of memory
        return None
    finally:
        free_memory(device)


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
    if reason := _why_not(model, measured, has_decode=bool(tpots), has_bandwidth=bool(bandwidth)):
        return Figure("bandwidth_share", None, reason)
    read = weights - _unread_bytes(model) + _mean_cache_bytes(measured)
    return Figure("bandwidth_share", MS_PER_S * read / median(tpots) / (bandwidth or 1.0), count=len(tpots))


def _why_not(model: Any, measured: Measurement, *, has_decode: bool, has_bandwidth: bool) -> str:
    config = model.config.get_text_config()
    reasons = {
        NO_DECODE: not has_decode,
        "the device's copy bandwidth could not be measured": not has_bandwidth,
        "unknown kind of KV cache": measured.counts.kv_cache_bytes is None,
        "a mixture of experts reads only some of its weights per token": any(
            getattr(config, name, None) for name in _EXPERTS
        ),
        "a decode step does not read the weights of an encoder": any(
            getattr(model.config, name, None) for name in _READ_BY_PREFILL_ALONE
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _unread_bytes(model: Any) -> int:
    """Bytes of the input embedding, of which a step reads one row per sequence; 0 if it is also the output head."""
    embedding, head = model.get_input_embeddings().weight, getattr(model.get_output_embeddings(), "weight", None)
    tied = head is not None and head.data_ptr() == embedding.data_ptr()
    return 0 if tied else int(embedding.nbytes)


def _mean_cache_bytes(measured: Measurement) -> float:
    """Mean KV cache bytes that a step reads.

    Step i reads input + i positions, i from 1 to output - 1. The size is known after the last step.
    """
    plan, after = measured.plan, measured.counts.kv_cache_bytes or 0
    return after * (plan.input_tokens + plan.output_tokens / 2) / (plan.input_tokens + plan.output_tokens - 1)
