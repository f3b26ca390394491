"""``--device fake-cuda``: the operators of a GPU, its memory and its speed, with no driver."""

from __future__ import annotations

import pytest
import torch
from fake_device import new_model
from transformers import AutoConfig

from pytest_llmperf import ModelSpec
from pytest_llmperf.hardware.clock import clock_for
from pytest_llmperf.hardware.data_sheet import find_data_sheet
from pytest_llmperf.hardware.fake_device import FakeDevice, with_values
from pytest_llmperf.measure.fake_generation import count_generation
from pytest_llmperf.measure.generation import Plan, measure_generation
from pytest_llmperf.models.load import load
from pytest_llmperf.models.shape_only import build_shape_only

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this torch is no CUDA build: nox -s cuda-fake")

FORMS = ["bf16", "fp16", "fp32", "nf4", "nf4-dq", "int8"]
PLAN = Plan(batch_size=2, input_tokens=12, output_tokens=4, execution="loop", requests=1, warmup_cap=0)
FUSED = "aten::_scaled_dot_product_{}_attention"


def counted(form, name="h100", **more):
    device = FakeDevice("fake-cuda", find_data_sheet(name))
    with device.computing():
        with with_values():
            loaded = build_shape_only(ModelSpec("synthetic:tiny", form, **more), "cuda:0", device.computing)
        return count_generation(loaded.model, PLAN, device, load_tokenizer=lambda: (None, ""))


def kernel(found):
    return [name for name in found.work["decode"].operators if "attention" in name]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_counted(form):
    found = counted(form)
    assert found.reason == ""
    assert found.waits == {"prefill": [], "decode": []}
    assert not found.work["decode"].without_formula
    assert found.peaks["prefill"] > found.weights_bytes


@pytest.mark.parametrize(
    ("name", "form", "chosen"),
    [
        ("a100-80", "bf16", "flash"),
        ("l4", "fp16", "flash"),
        ("a100-80", "fp32", "efficient"),
        ("t4", "fp16", "efficient"),
    ],
)
def test_attention_is_that_of_the_gpu(name, form, chosen):
    assert kernel(counted(form, name)) == [FUSED.format(chosen)]


def test_hopper_prefers_cudnn_from_its_version_on():
    expected = "cudnn" if torch.backends.cudnn.version() > 91500 else "flash"
    assert kernel(counted("bf16", "h100")) == [FUSED.format(expected)]


def test_fused_kernels_do_the_same_work():
    """The same FLOPs, and no more memory than matrix products with their scores."""
    hopper, ampere, eager = counted("bf16", "h100"), counted("bf16", "a100-80"), counted("bf16", attention="eager")
    assert hopper.work["decode"].flops == ampere.work["decode"].flops == eager.work["decode"].flops
    assert max(hopper.peaks["prefill"], ampere.peaks["prefill"]) < eager.peaks["prefill"]


def test_old_gpus_compute_in_fp16():
    """A T4 only emulates bf16."""
    assert "bfloat16" not in counted("nf4", "t4").work["decode"].bytes
    assert "bfloat16" in counted("nf4", "l4").work["decode"].bytes


def test_outliers_are_read_back():
    assert counted("int8-decomp").reason.startswith("bitsandbytes/functional.py:")


def test_waits_have_their_lines():
    """A sliding window's size is copied to the device in each layer of the prefill."""
    device = FakeDevice("fake-cuda", find_data_sheet("h100"))
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}
    with device.computing(), torch.no_grad():
        model = new_model(AutoConfig.for_model("mistral", **shape, sliding_window=4), "eager")
        found = count_generation(model, PLAN, device, load_tokenizer=lambda: (None, ""))
    assert len(found.waits["prefill"]) == 2
    assert all(line.startswith("transformers/cache_utils.py:") for line in found.waits["prefill"])
    assert found.waits["decode"] == []


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("form", FORMS)
def test_a_gpu_counts_the_same(form):
    """The fake device has the capability of the one that is here."""
    major, minor = torch.cuda.get_device_capability()
    real = measure_generation(
        load(ModelSpec("synthetic:tiny", form), "cuda:0").model, PLAN, device="cuda:0", clock=clock_for("cuda:0")
    )
    fake = counted(form, f"80GiB:{major}.{minor}")
    assert fake.work == real.counts.work
    assert list(fake.figures) == list(real.counts.figures)
    assert (fake.weights_bytes, fake.cache) == (real.weights_bytes, real.counts.cache)
    for phase, peak in real.peaks.items():
        assert fake.peaks[phase] == pytest.approx(peak.allocated_bytes, rel=0.02)


DECODE = """
import pytest


@pytest.mark.parametrize("llm", ["bf16", "nf4"], indirect=True)
def test_decode(llm, llmperf):
    result = llmperf.generate(llm)
    assert 0 < result.value("memory") < 1
    assert 0 < result.value("roofline_tpot") <= result.value("roofline_ttft")
"""
RUN = ("--device=fake-cuda", "--llmperf-model=synthetic:1b", "--llmperf-input-tokens=512")


def test_a_run_says_whether_it_fits_and_how_fast_it_could_be(project):
    """1.5 billion weights fit an L4 and not a device of one GiB; no weight is made."""
    project.write(DECODE)
    result = project.run(*RUN, "--llmperf-fake=l4", "--llmperf-update")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["*llmperf: fake-cuda-l4*", "memory: every workload fits l4; the largest takes * GiB (*"]
    )
    assert project.baseline().name == "fake-cuda-l4.json"
    project.write(DECODE.replace("< 1", ""))
    result = project.run(*RUN, "--llmperf-fake=1GiB:8.9")
    result.stdout.fnmatch_lines(["memory: 2 of 2 workloads do NOT fit 1gib:8.9; the largest takes * of 1.0 GiB (*"])


def test_a_second_run_is_decided(project):
    project.write(DECODE)
    arguments = ("--device=fake-cuda", "--llmperf-model=synthetic:tiny")
    assert project.run(*arguments, "--llmperf-update").ret == 0
    result = project.run(*arguments, "--llmperf-strict")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["llmperf: 2 tests, * gating cells decided: * unchanged"])
