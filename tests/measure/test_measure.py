"""Clocks, warm-up, generation, memory, counters and the machine, each from outside."""

from __future__ import annotations

import itertools
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf import ModelSpec
from pytest_llmperf.engines.executions.execution import Generated, check_produced, greedy_loop, library_generate
from pytest_llmperf.engines.executions.execution_registry import find_execution
from pytest_llmperf.engines.executions.request import time_request
from pytest_llmperf.errors import MeasurementError, UsageError
from pytest_llmperf.hardware import clock as clocks
from pytest_llmperf.hardware.clock import EventClock, HostClock, SynchronizedClock, clock_for
from pytest_llmperf.hardware.device import check_device_name, resolve_device
from pytest_llmperf.hardware.environment import device_key, environment, session_id
from pytest_llmperf.hardware.memory import live_tensor_bytes, trace_memory
from pytest_llmperf.measure.counters import cache_bytes, count_operators
from pytest_llmperf.measure.generation import Plan, measure_generation
from pytest_llmperf.measure.prompt import digest, random_prompt
from pytest_llmperf.measure.warmup import WINDOW, warm_up
from pytest_llmperf.models.load import load
from pytest_llmperf.models.source import default_model
from pytest_llmperf.storage.comparability import FIELDS
from pytest_llmperf.text import printable, slug


class TickingClock:
    """One millisecond a stamp."""

    name = "ticking"

    def __init__(self) -> None:
        self.ticks = itertools.count()

    def stamp(self) -> int:
        return next(self.ticks)

    def synchronize(self) -> None:
        pass

    def elapsed_ms(self, start: int, end: int) -> float:
        return float(end - start)


class FakeEvent:
    """What the documentation of torch.cuda.Event promises."""

    times = itertools.count()

    def __init__(self, enable_timing: bool = False) -> None:
        self.timed = enable_timing
        self.time: float | None = None

    def record(self, stream: str) -> None:
        self.time = float(next(self.times))

    def elapsed_time(self, end: FakeEvent) -> float:
        if not (self.timed and end.timed):
            raise RuntimeError("Both events must be created with argument 'enable_timing=True'.")
        return end.time - self.time


class BackwardEvent(FakeEvent):
    def elapsed_time(self, end: FakeEvent) -> float:
        return -1.0


class UntimedEvent(FakeEvent):
    def elapsed_time(self, end: FakeEvent) -> float:
        raise NotImplementedError


def fake_module(event: type | None) -> SimpleNamespace:
    calls: list[str] = []
    module = SimpleNamespace(
        __name__="torch.xpu",
        synchronize=lambda device: calls.append("synchronize"),
        set_device=calls.append,
        current_stream=lambda device: f"stream of {device}",
        calls=calls,
    )
    if event is not None:
        module.Event = event
    return module


@pytest.fixture(scope="module")
def tiny(model_cache):
    return load(ModelSpec("synthetic:tiny", "fp32"), "cpu")


def plan(**changes) -> Plan:
    base = {"batch_size": 2, "input_tokens": 5, "output_tokens": 4, "execution": "loop", "requests": 3, "warmup_cap": 6}
    return Plan(**base | changes)


def test_events_are_used_where_they_run_forwards(monkeypatch):
    """No synchronization between stamps, and the device that was asked for becomes the current one."""
    module = fake_module(FakeEvent)
    monkeypatch.setattr(torch, "xpu", module)
    clock = clock_for("xpu:1")
    assert isinstance(clock, EventClock)
    assert clock.name == "xpu events"
    assert module.calls == ["xpu:1", "synchronize"]
    start, end = clock.stamp(), clock.stamp()
    assert clock.elapsed_ms(start, end) == 1.0
    assert module.calls == ["xpu:1", "synchronize"]


@pytest.mark.parametrize("event", [None, BackwardEvent, UntimedEvent], ids=["missing", "backward", "not implemented"])
def test_without_working_events_every_stamp_synchronizes(monkeypatch, event):
    """The fall-back is explicit and named."""
    module = fake_module(event)
    monkeypatch.setattr(torch, "xpu", module)
    clock = clock_for("xpu:0")
    assert isinstance(clock, SynchronizedClock)
    assert clock.name == "perf_counter after synchronize"
    module.calls.clear()
    clock.stamp()
    assert module.calls == ["synchronize"]


def test_a_cpu_has_the_hosts_clock(monkeypatch):
    """Nanoseconds in, milliseconds out."""
    monkeypatch.setattr(clocks.time, "perf_counter_ns", iter([1_000_000, 3_500_000]).__next__)
    clock = clock_for("cpu")
    assert type(clock) is HostClock
    assert clock.elapsed_ms(clock.stamp(), clock.stamp()) == 2.5


def test_warming_up_ends_when_the_windows_agree():
    """A decaying series is followed down, a steady one is left after two windows."""
    steady = warm_up(iter([1.0] * 20).__next__, cap=20)
    assert (steady.requests, steady.steady, steady.drift) == (1 + 2 * WINDOW, True, 0.0)
    decaying = warm_up(iter([2.0**-n for n in range(6)] + [0.01] * 15).__next__, cap=20)
    assert decaying.steady
    assert decaying.requests > 7


def test_warming_up_that_never_settles_is_told():
    """The cap ends it, and the record says that it was not steady."""
    found = warm_up((0.5**n for n in itertools.count()).__next__, cap=7)
    assert (found.requests, found.steady) == (7, False)
    assert found.drift == pytest.approx(-0.75)


@given(st.lists(st.floats(0.001, 1000), min_size=30, max_size=30), st.integers(0, 30))
def test_warming_up_never_exceeds_its_cap(durations, cap):
    """Whatever the machine does."""
    assert warm_up(iter(durations).__next__, cap=cap).requests <= cap


def test_a_request_is_timed_by_its_stamps():
    """TTFT from the request to the first token, a gap for each further one, TPOT their mean."""

    def run(on_token):
        for _ in range(4):
            on_token()

    times, _ = time_request(run, TickingClock())
    assert times.ttft_ms == 1.0
    assert times.itl_ms == [1.0, 1.0, 1.0]
    assert times.tpot_ms == 1.0
    assert times.e2e_ms == 4.0


@pytest.mark.parametrize("execution", ["generate", "loop"])
def test_a_measurement_holds_every_request(tiny, execution):
    """Requests, tokens, counters, memory and warm-up, by a clock that ticks once a token."""
    found = measure_generation(tiny.model, plan(execution=execution), device="cpu", clock=TickingClock())
    assert len(found.requests) == 3
    assert found.tokens_produced == 3 * 2 * 4
    assert [times.itl_ms for times in found.requests] == [[1.0] * 3] * 3
    assert found.warmup.steady
    assert found.counts.operators_per_token > 50
    config = tiny.model.config
    per_position = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert found.counts.kv_cache_bytes == 2 * (5 + 3) * per_position
    assert found.peaks["decode"].allocated_bytes > found.counts.kv_cache_bytes
    assert found.peaks["prefill"].rss_bytes is None or found.peaks["prefill"].rss_bytes > 0


def test_identical_measurements_agree_on_what_is_exact(tiny):
    """Operators, tokens, cache and CPU memory do not depend on the run."""
    one, two = (measure_generation(tiny.model, plan(), device="cpu", clock=TickingClock()) for _ in range(2))
    assert one.counts == two.counts
    assert [peak.allocated_bytes for peak in one.peaks.values()] == [
        peak.allocated_bytes for peak in two.peaks.values()
    ]
    assert one.prompt_sha256 == two.prompt_sha256


@pytest.mark.parametrize("execution", ["generate", "loop"])
def test_a_request_longer_than_the_models_limit_is_refused(tiny, execution):
    """Before anything runs, with both numbers."""
    with pytest.raises(UsageError, match=r"5 input and 100000 output tokens are 100005 positions; the model has \d+"):
        measure_generation(
            tiny.model, plan(output_tokens=100_000, execution=execution), device="cpu", clock=TickingClock()
        )


def test_fewer_tokens_than_asked_for_are_an_error():
    """A generation that stopped early is not the same work."""
    short = Generated(torch.zeros(2, 3), None)
    with pytest.raises(MeasurementError, match="produced 3 tokens for each of 2 prompts; expected 4 for each of 2"):
        check_produced(short, batch_size=2, output_tokens=4)


def test_generate_does_what_it_does_for_its_user(tiny):
    """Each step, operator for operator, looks for end tokens among them; and none of them stops it."""
    model, prompt = tiny.model, random_prompt(tiny.model.config, batch_size=2, input_tokens=5, seed=0)
    given = {"attention_mask": torch.ones_like(prompt), "do_sample": False}
    counts: dict[str, list[int]] = {"theirs": [], "ours": []}
    for tokens in (6, 10):
        with count_operators() as theirs:
            out = model.generate(prompt, max_new_tokens=tokens, **given)
        assert out.shape == (2, 5 + tokens), "no end token by chance"
        with count_operators() as ours:
            found = library_generate(model, prompt, tokens, lambda: None)
        assert torch.equal(found.tokens, out[:, 5:])
        counts["theirs"].append(theirs.total)
        counts["ours"].append(ours.total)
    steps = {name: longer - shorter for name, (shorter, longer) in counts.items()}
    assert steps["ours"] == steps["theirs"] > 0


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_end_tokens_do_not_stop_generate(tiny, monkeypatch, several):
    """It produces what the bare loop does, an end token like another."""
    prompt = random_prompt(tiny.model.config, batch_size=1, input_tokens=5, seed=0)
    plain = greedy_loop(tiny.model, prompt, 6, lambda: None).tokens
    first = int(plain[0, 1])
    monkeypatch.setattr(tiny.model.generation_config, "eos_token_id", [first, 2] if several else first)
    assert torch.equal(library_generate(tiny.model, prompt, 6, lambda: None).tokens, plain)


def test_a_model_that_stops_early_is_an_error(tiny, monkeypatch):
    """Through the library's own loop."""
    real = tiny.model.generate

    def stops(prompt, *, generation_config, **kwargs):
        generation_config.update(max_new_tokens=2)
        return real(prompt, generation_config=generation_config, **kwargs)

    monkeypatch.setattr(tiny.model, "generate", stops)
    with pytest.raises(MeasurementError, match="produced 2 tokens"):
        measure_generation(tiny.model, plan(execution="generate"), device="cpu", clock=TickingClock())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: expected a whole number of at least 1"),
        ({"output_tokens": 2.5}, "output_tokens=2.5"),
        ({"requests": True}, "requests=True"),
        ({"warmup_cap": -1}, "warmup_cap=-1: expected a whole number of at least 0"),
        ({"execution": "fast"}, "unknown execution 'fast': expected one of generate, loop"),
    ],
)
def test_a_plan_checks_its_numbers(change, message):
    """Wrong arguments of ``llmperf.generate`` are named."""
    with pytest.raises(UsageError, match=message):
        plan(**change)


def test_prompts_are_seeded_and_free_of_special_tokens(tiny):
    """The same seed gives the same ids; none of them ends the generation."""
    config = tiny.model.config
    one, two, other = (random_prompt(config, batch_size=3, input_tokens=50, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert digest(one) == digest(two) != digest(other)
    assert one.shape == (3, 50)
    assert not {config.bos_token_id, config.eos_token_id} & set(one.flatten().tolist())


def test_operators_are_counted_one_by_one():
    """Composite operators count as what they are made of."""
    with count_operators() as count:
        torch.ones(2) + torch.ones(2)
    assert count.total == 3


def test_the_cache_of_an_unknown_kind_has_no_size():
    """``None``, never 0."""
    assert cache_bytes(object()) is None


def test_cpu_memory_is_followed_by_phase_to_the_byte():
    """What is held counts on; what was freed does not."""
    held = []
    with trace_memory("cpu", "first") as trace:
        torch.zeros(32 << 20, dtype=torch.uint8)
        held.append(torch.zeros(8 << 20, dtype=torch.uint8))
        trace.enter("second")
        torch.zeros(16 << 20, dtype=torch.uint8)
    first, second = trace.peaks["first"].allocated_bytes, trace.peaks["second"].allocated_bytes
    assert first - second == (32 - 8 - 16) << 20


def test_memory_is_followed_to_the_end_of_a_block_that_raises():
    """The profiler does not stay open."""
    with pytest.raises(ZeroDivisionError), trace_memory("cpu", "first"):
        raise ZeroDivisionError
    with trace_memory("cpu", "second") as trace:
        pass
    assert trace.peaks["second"].allocated_bytes is not None


def test_what_raised_is_told_although_the_phase_had_not_begun(monkeypatch):
    """A time limit may strike between two phases."""
    with pytest.raises(TimeoutError, match="too long"), trace_memory("cpu", "first") as trace:  # noqa: PT012  # so it is
        monkeypatch.setattr(trace._device, "enter", raising(TimeoutError("too long")))
        trace.enter("second")


def raising(error):
    def fail():
        raise error

    return fail


def test_fake_tensors_have_no_memory(recwarn):
    """What torch.compile leaves behind is not counted, and not asked for its address, which would warn."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    before = live_tensor_bytes()
    with FakeTensorMode():
        fake = torch.empty(1 << 20)
    assert live_tensor_bytes() == before
    assert fake.shape == (1 << 20,)
    assert not recwarn.list


def test_the_environment_has_the_known_fields():
    """Nothing is recorded that has no weight."""
    found = environment("cpu")
    assert set(found) <= set(FIELDS)
    assert found["torch"] == version("torch")
    assert device_key(found).startswith("cpu-")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", "nvidia-h200"),
        ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "nvidia-h100-80gb-hbm3-mig-1g-10gb"),
        ("AMD EPYC", "amd-epyc"),
        ("AMD EPYC 7763 64-Core Processor", "amd-epyc-7763"),
        ("Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz", "intel-xeon-platinum-8370c"),
        ("../../etc/passwd", "etc-passwd"),
        ("", "unknown"),
    ],
)
def test_a_devices_name_becomes_a_files_name(name, expected):
    """Lower case, without marks and clock rates, and never a path."""
    assert slug(name) == expected


@pytest.mark.parametrize("text", ["\x1b[31mred", "two\nlines", "back\rward", "\u202eturned"])
def test_text_from_outside_cannot_steer_a_terminal(text):
    """Control characters are shown escaped; the rest stays as it is."""
    shown = printable(text)
    assert shown.isprintable()
    assert printable("×1.5 µs ok") == "×1.5 µs ok"


def test_a_session_is_a_boot_a_day_and_a_ci_job(monkeypatch):
    """Runs that share it share that session's luck."""
    for name in ("GITHUB_RUN_ID", "CI_JOB_ID", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    assert session_id("2026-01-01") == session_id("2026-01-01") != session_id("2026-01-02")
    plain = session_id("2026-01-01")
    monkeypatch.setenv("GITHUB_RUN_ID", "7")
    assert session_id("2026-01-01") != plain


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:3", "xpu", "xpu:0", "mps"])
def test_known_devices_have_these_forms(name):
    """And no others."""
    check_device_name(name)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cpu:0", "CUDA", "cuda:-1"])
def test_other_names_are_no_devices(name):
    """Told before torch is imported."""
    with pytest.raises(UsageError, match="unknown device"):
        check_device_name(name)


def test_auto_takes_an_accelerator_that_works(monkeypatch):
    """The first of CUDA, XPU and MPS, else the CPU; indices count the visible devices."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 2)
    monkeypatch.setattr(torch.xpu, "current_device", lambda: 1)
    assert resolve_device("auto") == resolve_device("xpu") == "xpu:1"
    with pytest.raises(UsageError, match=r"'xpu:2' is not here: torch .* sees 2 xpu devices"):
        resolve_device("xpu:2")


def test_the_default_model_suits_the_device():
    """Small on a CPU, larger on an accelerator."""
    assert default_model("cpu") == "synthetic:32m"
    assert default_model("cuda:1") == "synthetic:1b"


def test_executions_have_names():
    """A wrong one is told with what there is."""
    assert find_execution("loop")
    with pytest.raises(UsageError, match="expected one of generate, loop"):
        find_execution("warp")
