"""Kernels that a decode step dispatches on CUDA, by quantization: bitsandbytes' own, and torch's for dense layers."""

from __future__ import annotations

import pytest
import torch
from fake_device import ReadBackError, fake_device, moved, steps_of_graph, steps_of_loop

from pytest_llmperf import ModelSpec
from pytest_llmperf.models.load import load
from pytest_llmperf.models.quantization import QUANTIZATIONS

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this torch is no CUDA build: nox -s cuda-fake")

PRODUCTS = 14
"""Matrix products of `synthetic:tiny`: seven per layer. The head, which is never quantized, is one more."""
MM = "aten.mm"
GEMM_4BIT = "bitsandbytes.gemm_4bit"
QUANTIZE, SCALED_MM = "bitsandbytes.int8_vectorwise_quant", "bitsandbytes.int8_scaled_mm"
DENSE, NF4 = {MM: PRODUCTS + 1}, {GEMM_4BIT: PRODUCTS, MM: 1}
INT8 = {QUANTIZE: PRODUCTS, SCALED_MM: PRODUCTS, MM: 1}
KERNELS = {"bf16": DENSE, "fp16": DENSE, "fp32": DENSE, "nf4": NF4, "nf4-dq": NF4, "int8": INT8}


def tiny(quantization):
    return load(ModelSpec("synthetic:tiny", quantization), "cpu").model


@pytest.mark.parametrize("quantization", KERNELS)
def test_the_kernels_of_a_step(model_cache, monkeypatch, quantization):
    """No weight is dequantized separately, even with double quantization, and no operator waits."""
    model, expected = tiny(quantization), KERNELS[quantization]
    with fake_device():
        moved(model)
        steps = [*steps_of_loop(model), *steps_of_graph(model, monkeypatch)]
    assert [step.waits for step in steps] == [[]] * 6
    assert [step.kernels() for step in steps] == [expected] * 6


def test_outliers_are_counted_on_the_host(model_cache):
    """LLM.int8() reads back the columns with outliers in its first product."""
    model = tiny("int8-decomp")
    with fake_device(), pytest.raises(ReadBackError, match=rf"{QUANTIZE}.default at bitsandbytes/functional\.py:\d+ "):
        steps_of_loop(moved(model))


def test_every_quantization_is_here():
    """A new quantization must list its kernels."""
    own = {name for name, one in QUANTIZATIONS.items() if not one.torchao} - {"stored"}
    assert {*KERNELS, "int8-decomp"} == own
