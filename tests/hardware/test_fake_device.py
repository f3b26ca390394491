"""A fake device: shapes without values, errors that name the line, and what code asks a GPU for."""

from __future__ import annotations

import pytest
import torch

from pytest_llmperf.errors import MeasurementError
from pytest_llmperf.hardware.data_sheet import find_data_sheet
from pytest_llmperf.hardware.fake_device import FakeDevice, NoValuesError, refusing_compiled, with_values
from pytest_llmperf.system.tensors import is_without_values, storage_bytes

HERE = r"hardware/test_fake_device\.py:\d+"

LIBRARY = torch.library.Library("llmperf_test", "DEF")
LIBRARY.define("without_fake(Tensor x) -> Tensor")
LIBRARY.impl("without_fake", lambda x: x.clone(), "CPU")
LIBRARY.define("wrong_fake(Tensor x) -> Tensor")
LIBRARY.impl("wrong_fake", lambda x: x[:1].clone(), "CPU")
LIBRARY.define("right_fake(Tensor x) -> Tensor")
LIBRARY.impl("right_fake", lambda x: x[:1].clone(), "CPU")
torch.library.register_fake("llmperf_test::wrong_fake", torch.empty_like)
torch.library.register_fake("llmperf_test::right_fake", lambda x: x.new_empty(1, *x.shape[1:]))


@pytest.fixture
def device():
    return FakeDevice("fake-cpu")


@pytest.fixture
def computing(device):
    with device.computing():
        yield device


def unknown(*shape):
    """A tensor that nothing is known of."""
    return torch.empty(*shape)


# Shapes and memory


def test_results_have_shapes_and_take_no_memory(computing):
    """A terabyte fits."""
    product = torch.empty(10**6, 10**6) @ unknown(10**6, 3)
    assert is_without_values(product)
    assert product.shape == (10**6, 3)
    assert storage_bytes([product]) == 12 * 10**6


def test_live_bytes_follow_intermediate_results(computing):
    y = torch.empty(500)
    z = (y + 1) * 2
    del y
    assert (computing.live.alive, computing.live.peak) == (2000, 6000)
    del z
    assert computing.live.alive == 0


def test_parts_of_a_composite_operator_are_followed(computing):
    """Attention by matrix products keeps its scores, which nobody outside sees."""
    query = torch.empty(1, 2, 64, 8)
    computing.live.begin_peak()
    with torch.inference_mode(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert computing.live.peak > 2 * 64 * 64 * 4


def test_values_are_back_where_they_are_asked_for(computing):
    with with_values():
        assert torch.arange(3).sum().item() == 3
    assert is_without_values(torch.arange(3))


def test_nothing_stays_behind(device):
    before = torch.ops.aten.scaled_dot_product_attention.default._op_dk
    for _ in range(2):
        with device.computing():
            torch.empty(3)
    assert not is_without_values(torch.empty(3))
    assert torch.ops.aten.scaled_dot_product_attention.default._op_dk == before


# Values that follow from shapes and from what is placed


def test_values_without_weights_are_known(computing):
    """Positions, masks, and what follows from the prompt; views and changes in place included."""
    with with_values():
        prompt = torch.tensor([[5, 0, 7]])
    ids = computing.place(prompt)
    assert (ids == 0).any().item()
    assert ids[0, 2].item() == 7
    assert ids.nonzero().shape == (2, 2)
    assert torch.arange(4).tolist() == [0, 1, 2, 3]
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert bool(mask.all())
    mask[0].fill_(False)  # torch's signature
    assert mask.sum().item() == 3
    assert torch.tensor(4).item() == 4
    assert torch.where(mask, torch.arange(3), torch.zeros((), dtype=torch.long)).max().item() == 2


UNKNOWN = {
    "empty": lambda: torch.empty(3, dtype=torch.long),
    "random": lambda: torch.rand(3),
    "of a weight": lambda: torch.ones(3) + unknown(3),
    "overwritten": lambda: torch.ones(3).copy_(unknown(3)),
    "overwritten by its view": lambda: _overwritten(torch.ones(3)),
    "large": lambda: torch.ones(1 << 21),
}


def _overwritten(tensor):
    tensor[:2].copy_(unknown(2))
    return tensor


@pytest.mark.parametrize("how", UNKNOWN)
def test_other_values_are_not(computing, how):
    tensor = UNKNOWN[how]()
    with pytest.raises(NoValuesError, match=rf"^{HERE} reads a value back \(aten::_local_scalar_dense\), and a fake "):
        tensor[0].item()


READS = {
    "item": (lambda x: x.sum().item(), "reads a value back"),
    "branch": (lambda x: bool(x.sum() > 0), "reads a value back"),
    "nonzero": (lambda x: x.nonzero(), "makes a tensor whose shape depends on values"),
    "mask": (lambda x: x[x > 0], "makes a tensor whose shape depends on values"),
    "unique": (torch.unique, "makes a tensor whose shape depends on values"),
}


@pytest.mark.parametrize("how", READS)
def test_what_depends_on_values_names_its_line(computing, how):
    read, what = READS[how]
    with pytest.raises(NoValuesError, match=rf"^{HERE} {what} \(aten::\w+\)[^\n]*a fake device has none$"):
        read(unknown(4))


# Operators of other libraries


def test_an_operator_without_a_fake_implementation_is_named(computing):
    with pytest.raises(NoValuesError, match=rf"llmperf_test::without_fake has no fake impl.*called at {HERE}$"):
        torch.ops.llmperf_test.without_fake(unknown(3))


def test_a_fake_implementation_of_another_shape_is_found(computing):
    """The real kernel runs on zeros of the same shapes, once each."""
    message = (
        r"^operator llmperf_test::wrong_fake: its fake .* returns float32\[3, 2\], and its kernel float32\[1, 2\]:"
    )
    with pytest.raises(MeasurementError, match=message):
        torch.ops.llmperf_test.wrong_fake(unknown(3, 2))
    assert torch.ops.llmperf_test.right_fake(unknown(3, 2)).shape == (1, 2)


def test_large_operators_are_not_checked(computing):
    """A fake device needs no memory."""
    assert torch.ops.llmperf_test.wrong_fake(unknown(1 << 23)).shape == (1 << 23,)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("form", ["transposed", "contiguous"])
def test_attention_has_the_strides_of_the_kernel(batch_size, tokens, form):
    """On a CPU, torch chooses by them how to multiply the result."""

    def strides():
        with torch.inference_mode():
            query = torch.empty(batch_size, tokens, 4, 16).transpose(1, 2)
            if form == "contiguous":
                query = torch.empty(query.shape)
            key = torch.empty(batch_size, 4, 9, 16)
            run = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return [tensor.stride() for tensor in run(query, key, key)]

    with FakeDevice("fake-cpu").computing():
        found = strides()
    assert found == strides()


# Compiled functions


def test_a_compiled_function_is_refused(computing):
    """Under a dispatch mode it would run as if it was not compiled."""

    @torch.compile
    def doubled(x):
        return x * 2

    message = rf"^function 'doubled' at {HERE} is compiled by torch\.compile, [^\n]*$"
    with pytest.raises(NoValuesError, match=message), refusing_compiled():
        doubled(unknown(3))


def test_other_errors_pass(computing):
    with pytest.raises(RuntimeError, match="mine"), refusing_compiled():
        raise RuntimeError("mine")


# What code asks a GPU for


@pytest.mark.parametrize(("name", "capability"), [("h100", (9, 0)), ("t4", (7, 5)), ("10GiB:8.6", (8, 6))])
def test_code_that_asks_gets_the_data_sheet(name, capability):
    sheet = find_data_sheet(name)
    with FakeDevice("fake-cuda", sheet).computing():
        assert torch.cuda.get_device_capability() == torch.cuda.get_device_capability("cuda:0") == capability
        properties = torch.cuda.get_device_properties(0)
        assert (properties.total_memory, properties.major) == (sheet.memory_bytes, capability[0])
        assert torch.cuda.mem_get_info() == (sheet.memory_bytes, sheet.memory_bytes)
        assert torch.cuda.get_device_name() == f"fake {sheet.name}"
