"""What the fixtures of `pytest_llmperf.plugin` do, and the objects that they give to tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from pytest_llmperf.errors import LlmperfError, MeasurementError, Unavailable, UsageError
from pytest_llmperf.runner import FIXTURE, MODEL_FIXTURES, TIMER, WORKPLACE
from pytest_llmperf.runner.perf_test import settings_of, test_key

if TYPE_CHECKING:
    from torch.nn import Module

    from pytest_llmperf.engines.engine import Engine
    from pytest_llmperf.engines.executions.execution import Execution
    from pytest_llmperf.hardware.memory import PeakMemory
    from pytest_llmperf.measure.kernel import KernelTimer
    from pytest_llmperf.measure.kernel_timing import Timing
    from pytest_llmperf.measure.prompt import Prompt
    from pytest_llmperf.models.load import LoadedModel
    from pytest_llmperf.runner.config import TestSettings
    from pytest_llmperf.runner.context import Workplace
    from pytest_llmperf.storage.schema import TestResult


_Got = TypeVar("_Got")
_Ids = Sequence[Sequence[int]]
_Words = str | Path | Sequence[Mapping[str, str]] | _Ids


def load_model(request: pytest.FixtureRequest) -> LoadedModel:
    """Return the model of the ``llm`` fixture."""
    return _got(partial(request.config.stash[WORKPLACE].load, request.param))


def start_engine(request: pytest.FixtureRequest) -> Engine:
    """Return the engine of the ``engine`` fixture."""
    return _got(partial(request.config.stash[WORKPLACE].engine, request.param))


def _got(get: Callable[[], _Got]) -> _Got:
    """Return what ``get`` returns; its errors fail the test in one line, and ``Unavailable`` skips it."""
    try:
        return get()
    except Unavailable:
        raise
    except LlmperfError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None  # a chained traceback would add lines


def new_llmperf(request: pytest.FixtureRequest) -> LlmPerf:
    """Return a test's ``llmperf`` fixture."""
    item, workplace = request.node, request.config.stash[WORKPLACE]
    if not {*MODEL_FIXTURES} & {*request.fixturenames}:  # a model that the test builds itself is alone in memory
        workplace.release_loaded()
    item.stash[FIXTURE] = fixture = LlmPerf(workplace, test_key(item), settings_of(item))
    return fixture


def new_timer(request: pytest.FixtureRequest) -> KernelTimer:
    """Return a test's ``cuda_timer`` fixture, whose timings are recorded."""
    workplace = request.config.stash[WORKPLACE]
    request.node.stash[TIMER] = recorder = CallRecorder(workplace, test_key(request.node))
    return workplace.timer(recorder.keep)


def memory_follower(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[PeakMemory]]:
    """Return the ``peak_memory`` fixture."""
    workplace = request.config.stash[WORKPLACE]
    workplace.refuse_without_device("peak_memory")
    return partial(_peak_memory, workplace.device)


class LlmPerf:
    """The ``llmperf`` fixture: measures workloads and records the results of one test."""

    def __init__(self, workplace: Workplace, test: str, settings: TestSettings) -> None:
        self._workplace = workplace
        self._test = test
        self._settings = settings
        self._start = time.monotonic()
        self.results: list[TestResult] = []
        """The results so far, in order."""

    @property
    def device(self) -> str:
        """The run's device in torch, such as ``cuda:0``: where a model that the test builds must be."""
        return self._workplace.device

    def generate(  # noqa: PLR0913  # one keyword for each axis of a workload
        self,
        llm: LoadedModel | Module,
        *,
        name: str | None = None,
        revision: str | None = None,
        batch_size: int = 1,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        prompt: _Words | None = None,
        execution: str | Execution | None = None,
        requests: int | None = None,
        warmup: int | None = None,
        seed: int = 0,
    ) -> TestResult:
        """Measure greedy generation of exactly ``output_tokens`` tokens for ``batch_size`` prompts.

        One untimed request counts operators. Warm-up requests run until times are steady. Then ``requests`` requests
        are timed, and one more tracks memory. The test is judged when it ends.

        Args:
            llm: the model, as the ``llm`` fixture gives it; or one that the test or its fixture built: a model of
                transformers, or a torch module whose forward takes ``input_ids``, ``past_key_values`` and ``use_cache``
                and returns ``logits`` and ``past_key_values``, as those do. It is on `device`, in evaluation mode.
            name: identifies a model that the test built; required for such a model, and part of the workload.
            revision: identifies its weights (default: unknown, recorded as null).
            batch_size: prompts per request.
            input_tokens: length of each random prompt (default: ``--llmperf-input-tokens``).
            output_tokens: tokens to generate for each prompt (default: ``--llmperf-output-tokens``).
            prompt: a text, a file with one, or the messages of a chat, for every sequence of the batch; or token ids,
                a list for each sequence (default: ``--llmperf-prompt``, which is random ids).
            execution: ``generate``, the library's own loop with a streamer; ``loop``, a bare greedy loop;
                ``compile``, as the run's options say, or a ``Compile``; ``graph`` or a ``Graph``; ``lookup`` or a
                ``Lookup``; ``assisted``, with the run's draft model, or an ``Assisted`` (default: ``generate``, or
                ``loop`` for a torch module that has none, and on a fake device).
            requests: requests to time (default: the marker's, else ``--llmperf-requests``).
            warmup: maximum of warm-up requests (default: the marker's, else ``--llmperf-warmup``).
            seed: of the random prompts.

        Returns:
            The result; ``result.value("tpot")`` is one of its values, in milliseconds.

        Raises:
            UsageError: an argument is invalid, a prompt of words is given with ``input_tokens`` or cannot be tokenized,
                the lengths exceed the model's limit, or a model that the test built cannot be measured as it is.
            MeasurementError: the measurement is not valid; ``ExecutionUnavailable``, which skips the test, if this
                execution cannot run here.
        """
        from pytest_llmperf.hardware.device import is_fake
        from pytest_llmperf.measure.generation import Plan
        from pytest_llmperf.models.own_model import check_execution, usual_execution

        __tracebackhide__ = True
        options, words = self._workplace.options, self._prompt(prompt, input_tokens)
        loaded = self._workplace.adopt(llm, name=name, revision=revision)
        usual = "loop" if is_fake(options.device) else usual_execution(loaded)
        chosen = options.execution(usual if execution is None else execution)
        check_execution(loaded, chosen.name)
        plan = Plan(
            batch_size=batch_size,
            input_tokens=self._length(input_tokens, words),
            output_tokens=_first(output_tokens, options.output_tokens),
            execution=chosen,
            requests=self._timed_requests(requests),
            warmup_cap=self._warmup_cap(warmup),
            seed=seed,
            prompt=words,
        )
        return self._keep(self._workplace.measure(loaded, plan, test=self._test))

    def serve(  # noqa: PLR0913  # one keyword for each axis of a workload
        self,
        engine: Engine | LoadedModel | Module,
        *,
        name: str | None = None,
        revision: str | None = None,
        scheduler: str = "online",
        requests: int | None = None,
        max_batch_size: int | None = None,
        input_tokens: int | tuple[int, int] | None = None,
        output_tokens: int | tuple[int, int] | None = None,
        prompt: _Ids | None = None,
        shared_prefix: int | None = None,
        rate: float | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        repeats: int = 3,
        warmup: int | None = None,
    ) -> TestResult:
        """Measure serving of requests with random ids: tokens per second, and the time of each request.

        Args:
            engine: as the ``engine`` fixture gives it, or a model as ``llm`` does, or a model of transformers that the
                test or its fixture built.
            name: identifies a model that the test built, as in `generate`.
            revision: identifies its weights.
            scheduler: ``naive``, one request after another; ``offline``, all at once; ``online``, at most
                ``max_batch_size`` at once.
            requests: number of requests (default: ``--llmperf-serve-requests``).
            max_batch_size: limit of the online scheduler (default: ``--llmperf-max-batch-size``).
            input_tokens: length of each prompt, or bounds of uniformly drawn ones (default:
                ``--llmperf-input-tokens``).
            output_tokens: tokens to generate for each, in the same forms (default: ``--llmperf-output-tokens``).
            prompt: token ids in place of random ones, a list for each request at least.
            shared_prefix: number of tokens that all prompts begin with; the rest of each prompt is new in every pass,
                so that a prefix cache can only find the shared part (default: ``--llmperf-shared-prefix``, which is 0).
            rate: Poisson arrivals per second at the online scheduler; all at once by default.
            temperature: of sampling; greedy at 0.
            top_k: number of most likely tokens to sample from (default: all).
            top_p: total probability of the most likely tokens to sample from (default: all).
            seed: of lengths, prompts and arrivals.
            repeats: timed passes over the requests.
            warmup: maximum of warm-up passes (default: the marker's, else ``--llmperf-warmup``).

        Returns:
            The result; ``result.value("output")`` is one of its values, in tokens per second.

        Raises:
            UsageError: an argument is invalid, the lengths exceed the model's limit, or a model that the test built
                cannot be served as it is.
            MeasurementError: the measurement is not valid.
        """
        from pytest_llmperf.engines.engine import Sampling
        from pytest_llmperf.measure.prompt import token_ids
        from pytest_llmperf.measure.serving_plan import ServingPlan

        __tracebackhide__ = True
        options = self._workplace.options
        if prompt is not None and input_tokens is not None:
            raise UsageError(f"input_tokens={input_tokens!r} with a prompt, which has its own length: leave out one")
        prompts = None if prompt is None else token_ids(prompt, "prompt")
        if input_tokens is None:
            input_tokens = len(prompts[0]) if prompts else options.input_tokens
        plan = ServingPlan(
            scheduler=scheduler,
            requests=_first(requests, options.serve_requests),
            max_batch_size=_first(max_batch_size, options.max_batch_size),
            input_tokens=input_tokens,
            prompts=prompts,
            output_tokens=options.output_tokens if output_tokens is None else output_tokens,
            sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p),
            shared_prefix=_first(shared_prefix, options.shared_prefix if prompt is None else 0),
            rate=rate,
            seed=seed,
            repeats=repeats,
            warmup_cap=self._warmup_cap(warmup),
        )
        served = self._workplace.engine_over(engine, name=name, revision=revision)
        return self._keep(self._workplace.serve(served, plan, test=self._test))

    def balanced_prompt(
        self, llm: LoadedModel, *, sequences: int = 1, input_tokens: int | None = None, seed: int = 0
    ) -> list[list[int]]:
        """Build token ids that load all experts of a mixture about equally during prefill.

        Routing depends on rounding, so build a prompt once and keep it, for example as JSON. It takes at most 64
        forwards for each sequence. What the model generates afterwards is not balanced.

        Args:
            llm: the mixture, as the ``llm`` fixture gives it.
            sequences: number of prompts.
            input_tokens: length of each (default: ``--llmperf-input-tokens``).
            seed: of the random ids that are tried.

        Returns:
            A list for each sequence, for ``prompt=``.

        Raises:
            UsageError: the model reports no routers, or an argument is no whole number.
        """
        from pytest_llmperf.measure.balanced_prompt import balanced_ids

        __tracebackhide__ = True
        self._workplace.refuse_without_device("a balanced prompt")
        length = self._workplace.options.input_tokens if input_tokens is None else input_tokens
        return balanced_ids(llm.model, sequences=sequences, input_tokens=length, seed=seed)

    def speedup(self, result: TestResult, *, over: TestResult) -> TestResult:
        """Record how many times as fast one workload of this test was as another; this ratio is gated too.

        Args:
            result: this test's result of one workload.
            over: its result of the other one, which is slower if the ratio is above 1.

        Returns:
            The recorded result; ``value("speedup")`` is the ratio.

        Raises:
            UsageError: a result is not from this test, both are the same, or their main metrics differ, such as TPOT
                and throughput.
            MeasurementError: a result has no value.
        """
        from pytest_llmperf.measure.speedup_result import speedup_of

        __tracebackhide__ = True
        self._workplace.refuse_uncounted("a speed-up")
        for given in (result, over):
            if given not in self.results:
                raise UsageError(f"speedup: {given!r:.60}: expected a result that llmperf measured in this test")
        return self._keep(self._workplace.finished(speedup_of(result, over=over)))

    def _keep(self, measured: TestResult) -> TestResult:
        __tracebackhide__ = True
        twice = f"{self._test} measured one workload twice; expected once: parametrize the test, or increase requests="
        return _add(self.results, measured, since=self._start, twice=twice)

    def _timed_requests(self, given: int | None) -> int:
        """Return the number that another process of ours asks for, else the test's, its marker's or the run's."""
        options = self._workplace.options
        counts = options.requests_by_test.get(self._test)
        return _first(counts.timed if counts else None, given, self._settings.requests, options.requests)

    def _warmup_cap(self, given: int | None) -> int:
        """Return the most warm-up requests, from the same places."""
        options = self._workplace.options
        counts = options.requests_by_test.get(self._test)
        return _first(counts.warmup if counts else None, given, self._settings.warmup, options.warmup)

    def _length(self, given: int | None, prompt: Prompt) -> int:
        """Return the test's length of a random prompt, else the run's; other prompts have their own length."""
        __tracebackhide__ = True
        options = self._workplace.options
        if given is not None:
            return given
        return options.input_tokens if prompt.is_random else options.input_lengths[0]

    def _prompt(self, given: _Words | None, input_tokens: int | None) -> Prompt:
        """Return the test's prompt, else the run's; a test that sets a length uses random ids."""
        from pytest_llmperf.measure.prompt import RANDOM, Prompt

        __tracebackhide__ = True
        if given is None:
            configured = self._workplace.options.prompt
            return configured if input_tokens is None or configured.is_random else RANDOM
        if input_tokens is not None:
            raise UsageError(f"input_tokens={input_tokens} with a text prompt, which has its own length: leave out one")
        return Prompt.of(given)


class CallRecorder:
    """Records the timings of ``cuda_timer`` in one test."""

    def __init__(self, workplace: Workplace, test: str) -> None:
        self._workplace = workplace
        self._test = test
        self._start = time.monotonic()
        self.results: list[TestResult] = []
        self.lines: list[str] = []
        """Text shown for each timing beside its value."""

    def keep(self, timing: Timing) -> None:
        """Record one timing.

        Raises:
            UsageError: an injection slows down a model's forwards, which a callable does not have.
            MeasurementError: the test timed the same call before.
        """
        from pytest_llmperf.measure.kernel_result import call_result

        __tracebackhide__ = True
        if self._workplace.options.request_injections:
            raise UsageError(
                f"--llmperf-inject {self._workplace.options.request_injections[0]}: a callable has no forwards to "
                "slow down: multiply its metric instead, such as call:+15%"
            )
        guards = self._workplace.options.guards
        measured = call_result(timing, test=self._test, run_id=self._workplace.run.run_id, guards=guards)
        twice = f"{self._test} timed {timing.name} twice with the same arguments; expected once: set name="
        _add(self.results, self._workplace.finished(measured), since=self._start, twice=twice)
        self.lines.append(f"{timing.name}: {timing}")


@contextmanager
def _peak_memory(device: str) -> Iterator[PeakMemory]:
    """Track the memory of a block on one device; the yielded peak is complete when the block has ended."""
    from pytest_llmperf.hardware.memory import PeakMemory, trace_memory

    found = PeakMemory(reason="the block has not ended")
    with trace_memory(device, "block") as trace:
        yield found
    vars(found).update(vars(trace.peaks["block"]))


def _add(results: list[TestResult], measured: TestResult, *, since: float, twice: str) -> TestResult:
    """Append a result of a test, with the seconds that the test has taken so far.

    Raises:
        MeasurementError: the test measured that workload before; ``twice`` is the message.
    """
    __tracebackhide__ = True
    if any(measured.workload == earlier.workload for earlier in results):
        raise MeasurementError(twice)
    elapsed_s = round(time.monotonic() - since, 3)
    observation = measured.observation.model_copy(update={"elapsed_s": elapsed_s})
    results.append(measured.model_copy(update={"observation": observation}))
    return results[-1]


def _first(*choices: int | None) -> int:
    for choice in choices:
        if choice is not None:
            return choice
    raise UsageError("a number is missing")
