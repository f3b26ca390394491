"""FLOPs of single operators, each formula counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pytest_llmperf.measure.flops import _FORMULAS, flops_of
from pytest_llmperf.measure.operator_call import OperatorCall
from pytest_llmperf.measure.work import count_work


def work(operate):
    """The work of one call, whose arguments are made of ones."""
    with torch.inference_mode(), count_work() as count:
        operate()
    return count.current


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


def half(*shape):
    return torch.ones(shape, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("operate", "dtype", "flops"),
    [
        (lambda: ones(5, 7) @ ones(7, 3), "float32", 2 * 5 * 7 * 3),
        (lambda: half(5, 7) @ half(7, 3), "bfloat16", 2 * 5 * 7 * 3),
        (lambda: ones(2, 5, 7) @ ones(7, 3), "float32", 2 * 2 * 5 * 7 * 3),
        (lambda: ones(2, 5, 7) @ ones(2, 7, 3), "float32", 2 * 2 * 5 * 7 * 3),
        (lambda: ones(5, 7) @ ones(7), "float32", 2 * 5 * 7),
        (lambda: ones(7) @ ones(7), "float32", 2 * 7),
        (lambda: torch.addmm(ones(3), ones(5, 7), ones(7, 3)), "float32", 2 * 5 * 7 * 3),
        (lambda: ones(5, 3).addmm_(ones(5, 7), ones(7, 3)), "float32", 2 * 5 * 7 * 3),
        (lambda: torch.mm(ones(5, 7), ones(7, 3), out=ones(5, 3)), "float32", 2 * 5 * 7 * 3),
        (lambda: torch.addmv(ones(5), ones(5, 7), ones(7)), "float32", 2 * 5 * 7),
        (lambda: torch.addbmm(ones(5, 3), ones(2, 5, 7), ones(2, 7, 3)), "float32", 2 * 2 * 5 * 7 * 3),
        (lambda: torch.baddbmm(ones(2, 5, 3), ones(2, 5, 7), ones(2, 7, 3)), "float32", 2 * 2 * 5 * 7 * 3),
        (lambda: functional.linear(ones(2, 5, 7), ones(3, 7), ones(3)), "float32", 2 * 2 * 5 * 7 * 3),
        (lambda: torch.einsum("bik,bkj->bij", ones(2, 5, 7), ones(2, 7, 3)), "float32", 2 * 2 * 5 * 7 * 3),
        (lambda: torch._int_mm(ones(32, 16, dtype=torch.int8), ones(16, 8, dtype=torch.int8)), "int8", 2 * 32 * 16 * 8),
        (lambda: functional.conv1d(ones(2, 3, 10), ones(5, 3, 4)), "float32", 2 * 2 * 5 * 7 * 3 * 4),
        (lambda: functional.conv1d(ones(2, 6, 10), ones(6, 1, 4), groups=6), "float32", 2 * 2 * 6 * 7 * 4),
        (
            lambda: functional.scaled_dot_product_attention(ones(2, 4, 3, 16), ones(2, 4, 7, 16), ones(2, 4, 7, 16)),
            "float32",
            2 * 2 * (2 * 4 * 3 * 7 * 16),
        ),
        (
            lambda: functional.scaled_dot_product_attention(
                half(2, 4, 3, 16), half(2, 2, 7, 16), half(2, 2, 7, 16), enable_gqa=True
            ),
            "bfloat16",
            2 * 2 * (2 * 4 * 3 * 7 * 16),
        ),
        (
            lambda: torch._grouped_mm(half(5, 16), half(4, 16, 8), offs=torch.tensor([1, 2, 5, 5], dtype=torch.int32)),
            "bfloat16",
            2 * 5 * 16 * 8,
        ),
        (
            lambda: torch._grouped_mm(half(8, 16), half(16, 24), offs=torch.tensor([8, 16], dtype=torch.int32)),
            "bfloat16",
            2 * 8 * 16 * 24,
        ),
        (lambda: torch._grouped_mm(half(4, 8, 16), half(4, 16, 24)), "bfloat16", 2 * 4 * 8 * 16 * 24),
        (
            lambda: torch._grouped_mm(half(2, 8, 16), half(16, 24), offs=torch.tensor([8, 24], dtype=torch.int32)),
            "bfloat16",
            2 * 8 * 16 * 24,
        ),
        (
            lambda: torch.ops.aten._weight_int8pack_mm(half(5, 64), ones(32, 64, dtype=torch.int8), half(32)),
            "bfloat16",
            2 * 5 * 64 * 32,
        ),
        (
            lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(
                half(5, 64), ones(32, 32, dtype=torch.uint8), 32, half(2, 32, 2)
            ),
            "bfloat16",
            2 * 5 * 64 * 32,
        ),
    ],
)
def test_each_formula(operate, dtype, flops):
    """Two for each number of the result and each number that it adds up."""
    found = work(operate)
    assert found.flops == {dtype: flops}
    assert not found.without_formula


@pytest.mark.parametrize(
    "operate",
    [
        lambda: functional.softmax(ones(5, 7), -1),
        lambda: functional.layer_norm(ones(5, 7), (7,)),
        lambda: functional.normalize(ones(5, 7)),
        lambda: functional.gelu(ones(5, 7)) + ones(7),
        lambda: functional.embedding(torch.tensor([1]), ones(5, 7)),
        lambda: functional.interpolate(ones(1, 2, 4, 4), scale_factor=2, mode="bilinear"),
        lambda: ones(5, 7).cummax(-1),
        lambda: torch.lgamma(ones(5)),
        lambda: ones(5, 7).sort(-1),
    ],
)
def test_what_works_number_by_number_has_none(operate):
    """As in torch's own counter; it is not called unknown."""
    found = work(operate)
    assert (found.flops.total(), found.without_formula) == (0, set())


@pytest.mark.parametrize(
    ("operate", "name"),
    [
        (lambda: torch.fft.rfft(ones(8)), "aten::_fft_r2c"),
        (lambda: torch.cdist(ones(30, 4), ones(30, 4), p=1), "aten::_cdist_forward"),
        (lambda: torch.linalg.inv(torch.eye(4)), "aten::linalg_inv_ex"),
        (lambda: functional.bilinear(ones(2, 3), ones(2, 4), ones(5, 3, 4)), "aten::_trilinear"),
    ],
)  # fmt: skip
def test_what_computes_and_has_no_formula_is_named(operate, name):
    """Never silently 0."""
    assert work(operate).without_formula == {name}


@pytest.fixture
def custom():
    """Operators of another library."""
    with torch.library._scoped_library("ours", "DEF") as library:
        library.define("double(Tensor x) -> Tensor")
        library.define("look(Tensor x) -> int")
        library.define("fill(Tensor(a!) x) -> ()")
        library.impl("double", lambda x: 2 * x, "CPU")
        library.impl("look", lambda x: 3, "CPU")
        library.impl("fill", lambda x: x.fill_(3).numel() and None, "CPU")
        yield torch.ops.ours


@pytest.mark.parametrize(("operator", "unknown"), [("double", True), ("fill", True), ("look", False)])
def test_operators_of_other_libraries_compute_if_they_return_tensors(custom, operator, unknown):
    """Nothing is known of what they do; one that returns a number is a question about its argument."""
    found = work(lambda: getattr(custom, operator)(ones(3)))
    assert found.without_formula == ({f"ours::{operator}"} if unknown else set())
    assert found.operators[f"ours::{operator}"] == 1


A8, B8 = ones(5, 64, dtype=torch.int8), ones(32, 64, dtype=torch.int8)
PACKED = torch.ones(32 * 64 // 2, 1, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "arguments", "flops"),
    [
        ("gemv_4bit", (half(1, 64), PACKED, [32, 64], ones(32), ones(16), 64), {"bfloat16": 2 * 64 * 32}),
        ("gemm_4bit", (half(5, 64), PACKED, [32, 64], ones(32), 64, "nf4"), {"bfloat16": 2 * 5 * 64 * 32}),
        ("int8_linear_matmul", (A8, B8), {"int8": 2 * 5 * 64 * 32}),
        ("int8_scaled_mm", (A8, B8, ones(5), ones(32)), {"int8": 2 * 5 * 64 * 32}),
        ("int8_mixed_scaled_mm", (half(5, 64), A8, B8, ones(5), ones(32)), {"int8": 2 * 5 * 64 * 32}),
        (
            "int8_mixed_scaled_mm",
            (half(5, 64), A8, B8, ones(5), ones(32), torch.tensor([3, 9, 40])),
            {"int8": 2 * 5 * 64 * 32, "bfloat16": 2 * 5 * 3 * 32},
        ),
        ("dequantize_4bit", (PACKED, ones(32), 64, "nf4", [32, 64], torch.bfloat16), {}),
        ("int8_vectorwise_quant", (half(5, 64),), {}),
    ],
)
def test_operators_of_bitsandbytes(name, arguments, flops):
    """Their shapes are in their arguments, so the kernel need not run: CPUs have not all of them."""
    pytest.importorskip("bitsandbytes")
    if not hasattr(torch.ops.bitsandbytes, name):
        pytest.skip(f"this bitsandbytes has no {name}")
    call = OperatorCall(getattr(torch.ops.bitsandbytes, name).default, arguments, {})
    assert flops_of(call) == flops


def test_every_operator_of_bitsandbytes_for_inference_is_known():
    """A new one fails here, so that it gets its formula; optimizers do not run in inference."""
    pytest.importorskip("bitsandbytes")
    schemas = torch._C._jit_get_all_schemas()
    names = {one.name for one in schemas if one.name.startswith("bitsandbytes::") and "optimizer" not in one.name}
    assert names
    assert names <= {*_FORMULAS}
