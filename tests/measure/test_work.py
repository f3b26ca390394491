"""The counter of work: its steps, names, allocations, and that counting changes nothing."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from functools import wraps
from types import SimpleNamespace

import pytest
import torch
from ticking_clock import TickingClock
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM
from zoo import ZOO

from pytest_llmperf import ModelSpec
from pytest_llmperf.engines.conditions import measuring_conditions
from pytest_llmperf.engines.executions.greedy_loop import greedy_loop
from pytest_llmperf.hardware.memory import trace_memory
from pytest_llmperf.measure.generation import Plan, measure_generation
from pytest_llmperf.measure.work import WorkCounter, count_work
from pytest_llmperf.measure.work_figures import work_figures
from pytest_llmperf.metrics import NO_DECODE, ONE_STEP, SEVERAL_AT_A_TIME
from pytest_llmperf.models.load import load
from pytest_llmperf.storage.schema import StepCounts

CONFIG = LlamaConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=128, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=2,
)  # fmt: skip
BATCH, INPUT, OUTPUT = 2, 6, 5


def llama(kind=LlamaForCausalLM, dtype=torch.float32):
    torch.manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        return kind(CONFIG).to(dtype).eval()


def counted(model, execution="loop"):
    plan = Plan(
        batch_size=BATCH, input_tokens=INPUT, output_tokens=OUTPUT, execution=execution, requests=1, warmup_cap=0
    )
    return measure_generation(model, plan, device="cpu", clock=TickingClock()).counts


def change(counts, plain, metric):
    return counts.figure(metric).value - plain.counts.figure(metric).value


@pytest.fixture
def inference():
    with torch.inference_mode():
        yield


class Plain(TorchDispatchMode):
    """Counts calls, and does nothing else."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


# Names and totals


def test_an_operator_that_is_composed_counts_as_one(inference):
    """Its name is that of the only part that does something."""
    x, weight = torch.ones(2, 3, 4), torch.ones(5, 4)
    with count_work() as count:
        functional.linear(x, weight)
        x.to(torch.float32)
        x.to(torch.float64)
        x.reshape(-1)
        x.transpose(0, 1).reshape(-1)
    assert count.current.operators == Counter(
        {"aten::mm": 1, "aten::to": 1, "aten::_to_copy": 1, "aten::reshape": 1, "aten::transpose": 1, "aten::clone": 1}
    )
    assert count.total == 6


def test_one_of_several_parts_keeps_its_name(inference):
    """A fused attention has one part; where torch cannot fuse it, it has many."""
    query = torch.ones(1, 2, 3, 8)
    with count_work() as fused:
        functional.scaled_dot_product_attention(query, query, query)
    with count_work() as eager, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        functional.scaled_dot_product_attention(query, query, query)
    assert fused.current.operators == {"aten::_scaled_dot_product_flash_attention_for_cpu": 1}
    assert eager.current.operators == {"aten::scaled_dot_product_attention": 1}
    assert eager.current.flops == fused.current.flops
    assert eager.current.bytes.total() > fused.current.bytes.total()


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "mamba", "gemma2", "t5"])
def test_as_many_operators_as_torch_dispatches(name, tmp_path):
    model = ZOO[name].load(tmp_path, torch.float32)
    prompt = torch.arange(40, 52).reshape(2, 6)
    with measuring_conditions():
        greedy_loop(model, prompt, 3, lambda: None)
        with Plain() as plain:
            greedy_loop(model, prompt, 3, lambda: None)
        with count_work() as count:
            greedy_loop(model, prompt, 3, count.on_token)
    assert count.total == plain.calls
    assert not count.decode.without_formula


@pytest.mark.parametrize("quantization", ["torchao-int8wo", "torchao-fp8wo", "torchao-int8dq"])
def test_layers_of_torchao_count_by_their_parts(quantization, model_cache):
    """As many FLOPs as dense layers have, none unknown, and as many operators as torch dispatches."""
    pytest.importorskip("torchao")
    found, prompt = {}, torch.arange(40, 46)[None]
    for name in ("bf16", quantization):
        model = load(ModelSpec("synthetic:tiny", name), "cpu").model
        with measuring_conditions(), Plain() as plain:
            greedy_loop(model, prompt, 3, lambda: None)
        with measuring_conditions(), count_work() as found[name]:
            greedy_loop(model, prompt, 3, lambda: None)
        assert found[name].total == plain.calls
    assert found[quantization].current.flops.total() == found["bf16"].current.flops.total()
    assert not found[quantization].current.without_formula


def test_a_failing_operator_is_counted_and_the_next_one_too(inference):
    with count_work() as count:
        with pytest.raises(RuntimeError):
            torch.ones(2, 3) @ torch.ones(2, 3)
        torch.ones(2)
    assert count.current.operators["aten::ones"] == 3


def test_wrapper_tensors_count_by_the_tensors_inside(inference):
    """One operator, as it is dispatched, with the work of both."""
    left, right = (TwoTensor(torch.ones(shape), torch.ones(shape)) for shape in ((5, 7), (7, 3)))
    with count_work() as count:
        torch.mm(left, right)
    assert count.current.operators == {"aten::mm": 1}
    assert count.current.flops == {"float32": 2 * (2 * 5 * 7 * 3)}
    assert count.current.bytes == {"float32": 2 * 4 * (5 * 7 + 7 * 3 + 5 * 3)}


# Steps and figures


def stepped(*tokens):
    """A counter after steps of as many tokens, each with one more addition than the last."""
    x = torch.ones(4)
    with torch.inference_mode(), count_work() as count:
        for additions, came in enumerate(tokens, 1):
            for _ in range(additions):
                torch.add(x, x)
            count.on_token(came)
        torch.add(x, x)
    return count


def figures(count):
    return {figure.metric: figure.value for figure in work_figures(count)}


def reasons(count):
    return {figure.metric: figure.reason for figure in work_figures(count) if figure.value is None}


def test_a_step_ends_with_its_token():
    """What follows the last one belongs to no step. An addition moves 48 bytes and allocates 16."""
    phases = stepped(1, 1, 1, 1).phases()
    one, four = (StepCounts(operators=n, flops=0, bytes=48 * n, allocations=n, allocated_bytes=16 * n) for n in (1, 4))
    assert (phases["prefill"].first, phases["prefill"].last, phases["prefill"].steps) == (one, one, 1)
    decode = phases["decode"]
    assert (decode.steps, decode.first.operators, decode.last) == (3, 2, four)
    assert (decode.operators, decode.bytes, decode.allocations) == ({"aten::add": 3}, {"float32": 144}, 3)


def test_figures_are_those_of_the_steps():
    found = figures(stepped(1, 1, 1, 1))
    assert found["prefill_operators"] == 1
    assert found["prefill_moved_bytes"] == 48
    assert found["prefill_allocations"] == 1
    assert found["operators_per_token"] == 3
    assert found["allocated_bytes_per_token"] == 48
    assert found["operators_growth"] == 1
    assert found["moved_bytes_growth"] == 48
    assert found["flops_growth"] == found["flops_per_token"] == found["intensity"] == 0


def test_several_tokens_at_a_time_are_one_step():
    """Means are per token; growth is per step."""
    count = stepped(2, 3, 3, 1)
    assert count.phases()["decode"].steps == 3
    found = figures(count)
    assert found["operators_per_token"] == count.per_token == 9 / 7
    assert found["operators_growth"] == 1


@pytest.mark.parametrize(
    ("tokens", "reason"), [((1,), NO_DECODE), ((4,), SEVERAL_AT_A_TIME), ((1, 1), ONE_STEP)]
)  # fmt: skip
def test_what_was_not_there_has_no_figures(tokens, reason):
    """It is ``None`` with its reason, never 0."""
    count = stepped(*tokens)
    found = reasons(count)
    assert set(found.values()) == {reason}
    assert set(found) >= {"operators_growth", "flops_growth", "moved_bytes_growth"}
    assert ("operators_per_token" in found) == (len(tokens) == 1)
    assert ("decode" in count.phases()) == (len(tokens) > 1)


def test_no_token_has_no_phases():
    assert WorkCounter().phases() == {}


def test_flops_that_are_not_known_are_not_figures(inference):
    """The reason names the operator. Its bytes are known."""
    with count_work() as count:
        count.on_token()
        for _ in range(2):
            torch.fft.rfft(torch.ones(8))
            count.on_token()
    assert reasons(count) == dict.fromkeys(
        ("flops_per_token", "flops_growth", "intensity"), "no formula for the FLOPs of aten::_fft_r2c"
    )
    assert count.phases()["decode"].without_formula == ["aten::_fft_r2c"]
    assert figures(count)["moved_bytes_per_token"] > 0


def test_nothing_counts_while_it_is_paused(inference):
    with count_work() as count:
        with count.paused():
            torch.ones(3) + 1
        torch.ones(3)
    assert count.total == 1


# Allocations


@pytest.mark.parametrize(
    ("operate", "sizes"),
    [
        (lambda x: x + 1, [32]),
        (lambda x: x.max(-1), [8, 16]),
        (lambda x: x.view(-1)[2:], []),
        (lambda x: x.add_(1), []),
        (lambda x: torch.neg(x, out=x), []),
        (lambda x: torch.neg(x, out=torch.empty(0)), [32]),
        (lambda x: torch.empty(3), [12]),
        (lambda x: torch.empty(0), []),
        (lambda x: x.t().contiguous().contiguous(), [32]),
        (lambda x: x.clone().resize_(100), [32, 400]),
    ],
)
def test_new_storages_are_allocations(inference, operate, sizes):
    """Views, results in place and empty tensors are none; a tensor that grows is."""
    with count_work() as count:
        operate(torch.ones(2, 4))
    count = count.current
    assert (count.allocations - 1, count.allocated_bytes - 32) == (len(sizes), sum(sizes))


# Counting changes nothing


def test_memory_is_freed_as_without_counting(inference):
    with count_work() as count:
        x = torch.ones(3)
        seen = [weakref.ref(x), weakref.ref(y := functional.linear(x, torch.ones(2, 3)))]
        del x, y
        gc.collect()
        assert [one() for one in seen] == [None, None]
    assert count.total == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_peaks_are_those_without_counting(dtype, attention):
    """Torch multiplies each sequence with a copy of the head unless it sees that the head is a parameter."""
    model = llama(dtype=dtype)
    model.set_attn_implementation(attention)
    prompt = torch.arange(12).reshape(2, 6)

    def peaks(count):
        with measuring_conditions(), trace_memory("cpu", "prefill") as trace, count:
            greedy_loop(model, prompt, 1, lambda: None)
        return trace.peaks["prefill"].allocated_bytes

    with measuring_conditions():
        greedy_loop(model, prompt, 1, lambda: None)
    assert peaks(count_work()) == peaks(torch.inference_mode())


def test_tokens_are_those_without_counting():
    model, prompt = llama(), torch.arange(12).reshape(2, 6)
    with measuring_conditions():
        plain = greedy_loop(model, prompt, 8, lambda: None).tokens
        with count_work():
            assert torch.equal(greedy_loop(model, prompt, 8, lambda: None).tokens, plain)


def test_fake_tensors_have_the_same_work():
    """They have shapes and no numbers."""

    def phases(mode):
        with mode:
            model, prompt = LlamaForCausalLM(CONFIG).eval(), torch.zeros(2, 6, dtype=torch.long)
            with torch.inference_mode(), count_work() as count:
                greedy_loop(model, prompt, 4, count.on_token)
        return count.phases()

    assert phases(FakeTensorMode()) == phases(torch.random.fork_rng(devices=[]))


# Changes of a model show


@pytest.fixture(scope="module")
def plain():
    return SimpleNamespace(counts=counted(llama()))


class Upcast(LlamaForCausalLM):
    """Computes its logits in double precision."""

    def __init__(self, config):
        super().__init__(config)
        head = self.lm_head

        class Head(torch.nn.Module):
            def forward(self, hidden):
                return functional.linear(hidden.double(), head.weight.double())

        self.lm_head = Head()
        self.head = head


def test_an_upcast_shows(plain):
    """Two copies a token: 64 numbers of each sequence, and the head's 128 x 64."""
    counts = counted(llama(Upcast))
    assert change(counts, plain, "operators_per_token") == 2
    decode, before = counts.work["decode"], plain.counts.work["decode"]
    assert decode.operators["aten::_to_copy"] == before.operators["aten::_to_copy"] + 2
    assert decode.flops["float64"] == 2 * BATCH * 64 * 128
    assert change(counts, plain, "flops_per_token") == 0
    numbers = BATCH * 64 + 64 * 128
    assert decode.bytes["float64"] == 8 * (2 * numbers + 2 * BATCH * 128)  # written, read; logits written and read
    assert change(counts, plain, "allocated_bytes_per_token") == 8 * numbers + (8 - 4) * BATCH * 128


class Copying(LlamaForCausalLM):
    """Copies its cache in each step."""

    @wraps(LlamaForCausalLM.forward)  # with its signature
    def forward(self, *args, past_key_values=None, **options):
        for layer in getattr(past_key_values, "layers", ()):
            if layer.get_seq_length():
                layer.keys = layer.keys.clone()
        return super().forward(*args, past_key_values=past_key_values, **options)


def test_a_growing_copy_shows(plain):
    """The keys of two layers, with one more position each step, are read and written once more."""
    counts = counted(llama(Copying))
    position = 2 * BATCH * 2 * 16 * 4
    assert change(counts, plain, "operators_per_token") == 2
    assert change(counts, plain, "operators_growth") == 0
    assert change(counts, plain, "moved_bytes_growth") == 2 * position
    assert change(counts, plain, "moved_bytes_per_token") == 2 * position * (INPUT + (INPUT + OUTPUT - 2)) / 2
    assert change(counts, plain, "allocated_bytes_per_token") == position * (INPUT + (INPUT + OUTPUT - 2)) / 2
    assert change(counts, plain, "flops_per_token") == 0


class CacheLost(torch.nn.Module):
    """A user's module whose "cache" is the text so far, which it processes again for each token."""

    def __init__(self, config):
        super().__init__()
        self.model = LlamaForCausalLM(config)
        self.config = config

    def forward(self, input_ids, past_key_values=None, use_cache=True):
        seen = input_ids if past_key_values is None else torch.cat([past_key_values.ids, input_ids], 1)
        out = self.model(seen, use_cache=False, logits_to_keep=1)
        return SimpleNamespace(logits=out.logits, past_key_values=SimpleNamespace(ids=seen))


def test_a_lost_cache_shows(plain):
    """In FLOPs, which grow by a position's products each step, although a step has about as many operators."""
    counts = counted(llama(CacheLost))
    assert change(counts, plain, "operators_per_token") < 20
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96
    assert counts.figure("flops_per_token").value > 5 * plain.counts.figure("flops_per_token").value
    products, scores = 2 * BATCH * 2 * layer, 2 * 2 * BATCH * 2 * 64
    lengths = [INPUT + step for step in range(1, OUTPUT)]
    squares = (lengths[-1] ** 2 - lengths[0] ** 2) / (len(lengths) - 1)
    assert counts.figure("flops_growth").value == products + scores * squares
    assert plain.counts.figure("flops_growth").value == scores
    assert counts.figure("moved_bytes_growth").value > 5 * plain.counts.figure("moved_bytes_growth").value
