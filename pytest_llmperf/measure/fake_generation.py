"""Count generation of one shape on a fake device: one request of tensors without values, and nothing timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from pytest_llmperf.engines.conditions import measuring_conditions
from pytest_llmperf.engines.executions.execution import PreparedExecution, check_produced
from pytest_llmperf.engines.executions.execution_registry import find_execution
from pytest_llmperf.engines.executions.greedy_loop import GreedyLoop
from pytest_llmperf.errors import ExecutionUnavailable, MeasurementError
from pytest_llmperf.hardware.clock import HostClock
from pytest_llmperf.hardware.fake_device import FakeDevice, refusing_compiled, with_values
from pytest_llmperf.measure.cache_size import CacheSize, NewStates, cache_size
from pytest_llmperf.measure.generation import Plan, prepare_prompt, use_first
from pytest_llmperf.measure.prompt import digest
from pytest_llmperf.measure.work import count_work
from pytest_llmperf.measure.work_figures import work_figures
from pytest_llmperf.metrics import Figure, Scalar
from pytest_llmperf.models.weights import weights_bytes
from pytest_llmperf.storage.schema import PhaseWork

if TYPE_CHECKING:
    import torch


@dataclass(kw_only=True)
class FakeMeasurement:
    """All results of one plan on one model on a fake device."""

    plan: Plan
    """The plan, with the prompt's length."""
    prompt_sha256: str
    weights_bytes: int
    figures: Sequence[Figure] = ()
    """Of the counted work."""
    work: Mapping[str, PhaseWork] = field(default_factory=dict)
    """Counted work by phase."""
    cache: CacheSize | None = None
    peaks: dict[str, int] = field(default_factory=dict)
    """Largest number of bytes of live tensors, by phase."""
    waits: dict[str, list[str]] = field(default_factory=dict)
    """Lines at which the host waited for the device, by phase, one for each time."""
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    reason: str = ""
    """Why the request could not be made; empty if it could."""


def count_generation(
    model: Any,
    plan: Plan,
    device: FakeDevice,
    *,
    load_tokenizer: Callable[[], tuple[Any | None, str]],
    enter: Callable[[str], None] = lambda _phase: None,
) -> FakeMeasurement:
    """Count one request of a model whose tensors are on the fake device. Call it inside ``device.computing()``.

    Args:
        model: a model of transformers, or a module with its forward signature.
        plan: the shape and the execution; its numbers of requests are not used.
        device: the fake device.
        load_tokenizer: returns the model's tokenizer, or None and the reason; called for prompts of words alone.
        enter: called with each phase as it begins.

    Raises:
        ExecutionUnavailable: the execution needs values, or the model cannot decode over a cache.
        MeasurementError: an operator's fake implementation is wrong.
        UsageError: prompt and output exceed the model's limit, or its tokenizer cannot make the prompt.
    """
    check_shape_only_execution(plan)
    needs_tokenizer = plan.prompt.text is not None or plan.prompt.chat is not None
    with with_values():
        tokenizer, error = load_tokenizer() if needs_tokenizer else (None, "")
        prompt, plan = prepare_prompt(plan, model, tokenizer, error)
        sha256 = digest(prompt)
    measured = FakeMeasurement(plan=plan, prompt_sha256=sha256, weights_bytes=weights_bytes(model))
    device.live.follow([*model.parameters(), *model.buffers()])  # those of a model that was built elsewhere
    try:
        _count(measured, model, device.place(prompt), device, enter)
    except ExecutionUnavailable:
        raise
    except MeasurementError as refusal:
        measured.reason = str(refusal)
    measured.weights_bytes = weights_bytes(model)
    return measured


def check_shape_only_execution(plan: Plan) -> None:
    """Check that an execution runs without values.

    Raises:
        ExecutionUnavailable: it does not.
    """
    execution = find_execution(plan.execution)
    if not isinstance(execution, GreedyLoop):
        raise ExecutionUnavailable(
            f"execution {execution.name!r} needs values, which a fake device does not have: use 'loop', its default"
        )


def _count(
    measured: FakeMeasurement, model: Any, ids: torch.Tensor, device: FakeDevice, enter: Callable[[str], None]
) -> None:
    """Make one request and fill in its counts."""
    plan = measured.plan
    execution = find_execution(plan.execution)
    enter("setting up")
    opened = execution.open(model, ids, plan.output_tokens, HostClock())
    with _not_traced(), refusing_compiled(), measuring_conditions(), opened as prepared:
        measured.settings = prepared.settings
        use_first(prepared.request, plan)
        enter("prefill")
        _count_request(measured, prepared, NewStates(model), device, enter)


@contextmanager
def _not_traced() -> Iterator[None]:
    """Keep transformers from taking other branches for fake tensors, as it does where ``torch.export`` traces it."""
    from transformers.utils import import_utils

    with patch.object(import_utils, "is_fake_tensor", lambda _tensor: False, create=True):
        yield


def _count_request(
    measured: FakeMeasurement,
    prepared: PreparedExecution,
    states: NewStates,
    device: FakeDevice,
    enter: Callable[[str], None],
) -> None:
    plan = measured.plan
    phase = "prefill"

    def end_phase() -> None:
        measured.peaks[phase] = device.live.peak
        measured.waits[phase] = [*device.waits]
        device.waits.clear()
        device.live.begin_peak()

    device.live.begin_peak()
    device.waits.clear()
    with count_work() as count:

        def on_token(came: int = 1, /) -> None:
            nonlocal phase
            if not count.tokens and plan.output_tokens > came:
                with count.paused():
                    end_phase()
                    phase = "decode"
                    enter(phase)
            count.on_token(came)

        generated = prepared.request(plan.output_tokens, on_token)
    end_phase()
    check_produced(generated, batch_size=plan.batch_size, output_tokens=plan.output_tokens, counted=sum(count.tokens))
    measured.cache = cache_size(generated.cache, plan.input_tokens + plan.output_tokens - 1, states.find())
    measured.figures = work_figures(count)
    measured.work = count.phases()
