"""FLOPs and bytes of a prefill and of decode steps equal a calculation by hand, from the config alone.

`Hand` knows three rules: an operator reads its arguments and writes its result; a product of matrices has two FLOPs for
each number of its result and each that it adds up; numbers have a size. The functions below it write down what
transformers does in a layer. Nothing here runs torch to find a number.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
import transformers
from ticking_clock import TickingClock
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig

from pytest_llmperf import ModelSpec
from pytest_llmperf.measure.generation import Plan, measure_generation
from pytest_llmperf.models.load import load

AS_WRITTEN_DOWN = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 23)
"""Whether transformers works number by number as below; earlier versions multiply the same matrices."""
BATCH, INPUT, OUTPUT = 2, 6, 4
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "int8": 1, "uint8": 1}
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
LLAMA = LlamaConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=128, max_position_embeddings=128, **IDS,
)  # fmt: skip
# Without a padding token, for which transformers would search the prompt.
GPT2 = GPT2Config(n_embd=64, n_layer=3, n_head=4, n_positions=96, vocab_size=160, bos_token_id=0, eos_token_id=1)
MIXTRAL = MixtralConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=128, num_local_experts=16, num_experts_per_tok=3, max_position_embeddings=128, **IDS,
)  # fmt: skip


@dataclass
class Hand:
    """FLOPs and bytes by dtype of one step, which processes ``new`` positions of each sequence after ``old`` ones."""

    old: int
    new: int
    dtype: str = "float32"
    """Of the model."""
    kind: str = ""
    """Of its linear layers: dense, or those of bitsandbytes."""
    flops: Counter = field(default_factory=Counter)
    bytes: Counter = field(default_factory=Counter)

    @property
    def rows(self):
        """Tokens that this step processes."""
        return BATCH * self.new

    def move(self, *numbers, dtype=None):
        """Read or write so many numbers."""
        self.bytes[dtype or self.dtype] += sum(numbers) * SIZES[dtype or self.dtype]

    def each(self, result, *others, dtype=None):
        """Number by number: read an argument of the result's size, and others; write the result."""
        self.move(result, *others, result, dtype=dtype)

    def cast(self, numbers, before, after):
        if before != after:
            self.move(numbers, dtype=before)
            self.move(numbers, dtype=after)

    def product(self, rows, inner, columns, *, bias=0):
        """``(rows, inner) @ (inner, columns)``, and a bias."""
        self.move(rows * inner, inner * columns, bias, rows * columns)
        self.flops[self.dtype] += 2 * rows * inner * columns

    def linear(self, rows, inner, columns):
        """A linear layer without bias, as it is quantized."""
        getattr(self, self.kind or "product")(rows, inner, columns)

    def nf4(self, rows, inner, columns):
        """Two weights a byte, a scale for 64 weights, and a table of the 16 values."""
        self.move(rows * inner, inner * columns // 64, rows * columns)
        self.move(inner * columns // 2, dtype="uint8")
        self.move(16, dtype="float32")
        self.flops[self.dtype] += 2 * rows * inner * columns

    def int8(self, rows, inner, columns):
        """Rows become int8 with a scale each; the product reads them, the weights, and a scale for each column."""
        self.move(rows * inner)
        self.move(rows * inner, dtype="int8")
        self.move(rows, dtype="float32")
        self.move(rows * inner, inner * columns, dtype="int8")
        self.move(rows, columns, dtype="float32")
        self.move(rows * columns)
        self.flops["int8"] += 2 * rows * inner * columns

    def attention(self, heads, kv_heads, dim):
        """Append new keys and values to the cache, which copies it; then one fused operator, which adds a log-sum."""
        keys = BATCH * kv_heads * dim
        context = self.old + self.new
        for _ in ("keys", "values"):
            self.move(keys * self.old, keys * self.new, keys * context)
        queries = BATCH * heads * self.new * dim
        self.move(queries, keys * context, keys * context, queries)
        self.move(BATCH * heads * self.new, dtype="float32")
        self.flops[self.dtype] += 2 * (2 * queries * context)  # scores, and the sum of values

    def embed(self, width):
        """Read ids and as many rows of the table; write them."""
        self.move(self.rows, dtype="int64")
        self.each(self.rows * width)

    def arange(self):
        """Positions of a prefill: written, then the length of the cache is added."""
        if not self.old:
            self.move(self.new, dtype="int64")
            self.each(self.new, dtype="int64")

    def rms_norm(self, width):
        """In float32: square, mean, plus epsilon, inverse root, times that; then times the weight."""
        x = self.rows * width
        self.cast(x, self.dtype, "float32")
        self.each(x, dtype="float32")
        self.move(x, self.rows, dtype="float32")
        self.each(self.rows, dtype="float32")
        self.each(self.rows, dtype="float32")
        self.each(x, self.rows, dtype="float32")
        self.cast(x, "float32", self.dtype)
        self.each(x, width)

    def rotary_tables(self, dim):
        """Angles of half the dimensions, twice; cosine and sine, each scaled and cast. The batch shares them."""
        self.move(self.new, dtype="int64")
        self.move(self.new, dtype="float32")
        self.move(self.new, dim // 2, self.new * dim // 2, dtype="float32")
        self.each(self.new * dim, dtype="float32")
        for _ in ("cosine", "sine"):
            self.each(self.new * dim, dtype="float32")
            self.each(self.new * dim, dtype="float32")
            self.cast(self.new * dim, "float32", self.dtype)

    def rotate(self, heads, dim):
        """X * cosine + rotated x * sine; one half is negated and both are joined."""
        x, table = self.rows * heads * dim, self.new * dim
        self.each(x, table)
        self.each(x // 2)
        self.each(x)
        self.each(x, table)
        self.each(x, x)

    def head(self, width, vocabulary):
        """Logits of the last position, and the most likely token."""
        self.product(BATCH, width, vocabulary)
        self.move(BATCH * vocabulary)
        self.move(BATCH, dtype="int64")

    def llama_attention(self, c):
        dim = c.hidden_size // c.num_attention_heads
        self.rms_norm(c.hidden_size)
        for heads in (c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads):
            self.linear(self.rows, c.hidden_size, heads * dim)
        self.rotate(c.num_attention_heads, dim)
        self.rotate(c.num_key_value_heads, dim)
        self.attention(c.num_attention_heads, c.num_key_value_heads, dim)
        self.linear(self.rows, c.hidden_size, c.hidden_size)
        self.each(self.rows * c.hidden_size, self.rows * c.hidden_size)

    def llama_mlp(self, c):
        x, inner = self.rows * c.hidden_size, self.rows * c.intermediate_size
        self.rms_norm(c.hidden_size)
        self.linear(self.rows, c.hidden_size, c.intermediate_size)
        self.each(inner)
        self.linear(self.rows, c.hidden_size, c.intermediate_size)
        self.each(inner, inner)
        self.linear(self.rows, c.intermediate_size, c.hidden_size)
        self.each(x, x)

    def experts(self, c):
        """The router's share of each token for its best experts; rows in the order of their experts, and back."""
        width, experts, best = c.hidden_size, c.num_local_experts, c.num_experts_per_tok
        rows, chosen = self.rows, self.rows * best
        self.rms_norm(width)
        self.product(rows, width, experts)
        self.cast(rows * experts, self.dtype, "float32")
        self.each(rows * experts, dtype="float32")  # softmax
        self.move(rows * experts, chosen, dtype="float32")  # the best shares, and whose they are
        self.move(chosen, dtype="int64")
        self.move(chosen, rows, dtype="float32")  # their sum, by which they are divided in place
        self.each(chosen, rows, dtype="float32")
        self.move(chosen, chosen, chosen, dtype="int64")  # sort: values and places
        self.each(chosen, dtype="int64")  # tokens of the places
        self.move(chosen, dtype="int64")
        self.move(min(chosen, rows) * width, chosen * width)  # rows of the tokens, which are read at most once
        self.move(chosen, dtype="int64")
        self.each(chosen, dtype="float32")  # shares
        self.cast(chosen, "int64", "float32")  # how many rows each expert has
        self.move(chosen, experts, dtype="float32")
        self.move(experts, dtype="float32")
        self.move(experts, dtype="int32")
        self.grouped(chosen, width, 2 * c.intermediate_size, experts)
        self.each(chosen * c.intermediate_size)
        self.each(chosen * c.intermediate_size, chosen * c.intermediate_size)
        self.grouped(chosen, c.intermediate_size, width, experts)
        self.move(chosen * width)  # times the shares, in float32
        self.move(chosen, chosen * width, dtype="float32")
        self.move(chosen, dtype="int64")  # 0, 1, 2, ... is put into the places: values and places are read
        self.move(chosen, chosen, chosen, dtype="int64")
        self.move(chosen, dtype="int64")
        self.each(chosen * width, dtype="float32")
        self.move(chosen * width, rows * width, dtype="float32")  # sum over the best
        self.cast(rows * width, "float32", self.dtype)
        self.each(rows * width, rows * width)

    def grouped(self, rows, inner, columns, experts):
        """Each row is multiplied by the matrix of its expert; at most one matrix for each row is read."""
        self.move(rows * inner, min(rows, experts) * inner * columns, rows * columns)
        self.move(experts, dtype="int32")
        self.flops[self.dtype] += 2 * rows * inner * columns

    def layer_norm(self, width):
        """One operator, which also writes mean and deviation of each row."""
        self.each(self.rows * width, width, width, self.rows, self.rows)

    def affine(self, inner, columns):
        self.product(self.rows, inner, columns, bias=columns)

    def gelu(self, width):
        """``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))``, an operator for each sign."""
        x = self.rows * width
        for operands in (1, 1, 1, 2, 1, 1, 1, 2):
            self.move(operands * x, x)

    def llama(self, c):
        self.embed(c.hidden_size)
        self.arange()
        self.rotary_tables(c.hidden_size // c.num_attention_heads)
        for _ in range(c.num_hidden_layers):
            self.llama_attention(c)
            self.experts(c) if isinstance(c, MixtralConfig) else self.llama_mlp(c)
        self.rms_norm(c.hidden_size)
        self.head(c.hidden_size, c.vocab_size)
        return self

    def gpt2(self, c):
        x = self.rows * c.n_embd
        self.embed(c.n_embd)
        self.arange()
        self.move(self.new, dtype="int64")  # embeddings of the positions, which the batch shares
        self.each(self.new * c.n_embd)
        self.each(x, self.new * c.n_embd)
        for _ in range(c.n_layer):
            self.layer_norm(c.n_embd)
            self.affine(c.n_embd, 3 * c.n_embd)
            self.attention(c.n_head, c.n_head, c.n_embd // c.n_head)
            self.affine(c.n_embd, c.n_embd)
            self.each(x, x)
            self.layer_norm(c.n_embd)
            self.affine(c.n_embd, 4 * c.n_embd)
            self.gelu(4 * c.n_embd)
            self.affine(4 * c.n_embd, c.n_embd)
            self.each(x, x)
        self.layer_norm(c.n_embd)
        self.head(c.n_embd, c.vocab_size)
        return self


def by_hand(config, **kind):
    """The prefill, and each step of decode. The last token is not fed back."""
    steps = [Hand(0, INPUT, **kind), *(Hand(INPUT + step, 1, **kind) for step in range(OUTPUT - 1))]
    return [step.gpt2(config) if isinstance(config, GPT2Config) else step.llama(config) for step in steps]


def built(config, dtype="float32"):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()


def counted(model, execution="loop"):
    plan = Plan(
        batch_size=BATCH, input_tokens=INPUT, output_tokens=OUTPUT, execution=execution, requests=1, warmup_cap=0
    )
    return measure_generation(model, plan, device="cpu", clock=TickingClock()).counts


def check(counts, steps, *, bytes_too=True):
    """Each dtype of each phase, the totals of the first and last step, and the figures made of them."""
    prefill, *decode = steps
    found = counts.work
    for name in ("flops", "bytes") if bytes_too else ("flops",):
        assert getattr(found["prefill"], name) == getattr(prefill, name)
        total = sum((getattr(step, name) for step in decode), Counter())
        mean = {dtype: number / (OUTPUT - 1) for dtype, number in total.items()}
        assert getattr(found["decode"], name) == mean
        assert getattr(found["decode"].first, name) == getattr(decode[0], name).total()
        assert getattr(found["decode"].last, name) == getattr(decode[-1], name).total()
        figure = {"flops": "flops", "bytes": "moved_bytes"}[name]
        growth = (getattr(decode[-1], name).total() - getattr(decode[0], name).total()) / (OUTPUT - 2)
        assert counts.figure(f"{figure}_growth").value == growth
        assert counts.figure(f"prefill_{figure}").value == getattr(prefill, name).total()
        assert counts.figure(f"{figure}_per_token").value == total.total() / (OUTPUT - 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [LLAMA, GPT2, MIXTRAL], ids=lambda config: config.model_type)
def test_work_equals_the_calculation_by_hand(config, dtype):
    """To the last digit: dense layers, layers with biases, and experts of which a step may not read all."""
    check(counted(built(config, dtype)), by_hand(config, dtype=dtype), bytes_too=AS_WRITTEN_DOWN)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_layers_equal_the_calculation_by_hand(quantization, model_cache):
    """Bitsandbytes' operators count by their formulas; the head stays dense."""
    loaded = load(ModelSpec("synthetic:tiny", quantization), "cpu")
    steps = by_hand(loaded.model.config, dtype=loaded.dtype, kind=quantization)
    fused = quantization == "int8" or _multiplies_nf4_at_once()
    check(counted(loaded.model), steps, bytes_too=AS_WRITTEN_DOWN and fused)


def _multiplies_nf4_at_once():
    """Other CPUs expand the weights first: the FLOPs are the same, and the bytes are not."""
    from bitsandbytes.functional import has_avx512bf16

    return has_avx512bf16()


def test_weights_are_most_of_a_small_step():
    """A check of the calculation itself: decode reads each weight of the layers and of the head once."""
    step = by_hand(LLAMA)[1]
    attention = 2 * 64 * 64 + 2 * 64 * 32
    weights = 4 * (2 * (attention + 3 * 64 * 96 + 2 * 64) + 64 + 128 * 64)
    assert weights < step.bytes["float32"] < 1.5 * weights
    assert step.flops["float32"] - 2 * 4 * BATCH * 64 * (INPUT + 1) == 2 * BATCH * (weights // 4 - 5 * 64)


def test_figures_do_not_depend_on_the_prompt_or_the_request():
    """A second model with other weights has the same work."""
    one, other = counted(built(LLAMA)), counted(built(LLAMA))
    assert one == other
    torch.manual_seed(1)
    changed = AutoModelForCausalLM.from_config(LLAMA, dtype=torch.float32).eval()
    assert counted(changed).figures == one.figures
