"""Quantizations: their library settings, and the devices they run on."""

from __future__ import annotations

from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

import pytest

from pytest_llmperf.errors import MissingDependency, UsageError
from pytest_llmperf.models import quantization
from pytest_llmperf.models.quantization import QUANTIZATIONS, check_available, compute_dtype

torch = pytest.importorskip("torch")

DENSE = ("bf16", "fp16", "fp32")
BITSANDBYTES = ("nf4", "nf4-dq", "int8", "int8-decomp")
TORCHAO = ("torchao-int8wo", "torchao-int8dq", "torchao-fp8wo", "torchao-fp8dq", "torchao-int4wo")


def without(missing: str) -> Callable[[str], ModuleSpec | None]:
    """A ``find_spec`` that does not find one package."""
    return lambda name: None if name == missing else find_spec(name)


def test_table() -> None:
    """The names that users write, in order."""
    assert tuple(QUANTIZATIONS) == (*DENSE, *BITSANDBYTES, *TORCHAO, "stored")
    assert [name for name in QUANTIZATIONS if QUANTIZATIONS[name].needs_bitsandbytes] == list(BITSANDBYTES)
    assert all(QUANTIZATIONS[name].name == name for name in QUANTIZATIONS)


@pytest.mark.parametrize("name", DENSE)
def test_dense_weights_have_no_config(name: str) -> None:
    """Dense weights are loaded without a quantization config."""
    assert QUANTIZATIONS[name].transformers_config(torch.bfloat16) is None


@pytest.mark.parametrize(("name", "double"), [("nf4", False), ("nf4-dq", True)])
def test_nf4_config(name: str, *, double: bool) -> None:
    """4 bit means NF4, with the requested compute dtype."""
    config = QUANTIZATIONS[name].transformers_config(torch.float16)
    assert config is not None
    assert (config.load_in_4bit, config.bnb_4bit_quant_type) == (True, "nf4")
    assert config.bnb_4bit_use_double_quant is double
    assert config.bnb_4bit_compute_dtype is torch.float16


@pytest.mark.parametrize(("name", "threshold"), [("int8", 0.0), ("int8-decomp", 6.0)])
def test_int8_config(name: str, threshold: float) -> None:
    """The two 8-bit quantizations differ in the outlier threshold alone."""
    config = QUANTIZATIONS[name].transformers_config(torch.bfloat16)
    assert config is not None
    assert (config.load_in_8bit, config.llm_int8_threshold) == (True, threshold)


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_a_stored_config_is_recognized(name: str) -> None:
    """A checkpoint's config matches exactly one quantization."""
    stored = QUANTIZATIONS[name].transformers_config(torch.bfloat16).to_dict()  # type: ignore[union-attr]
    assert [other for other in QUANTIZATIONS if QUANTIZATIONS[other].describes(stored)] == [name]


@pytest.mark.parametrize(
    ("name", "capability", "expected"),
    [
        ("bf16", (7, 5), torch.bfloat16),
        ("nf4", (7, 5), torch.float16),
        ("nf4", (8, 0), torch.bfloat16),
        ("int8", (7, 0), torch.float16),
        ("int8", (9, 0), torch.float16),
    ],
)
def test_compute_dtype_follows_the_gpu(
    name: str, capability: tuple[int, int], expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4-bit models compute in bf16 from compute capability 8.0 on; 8-bit models in fp16."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert compute_dtype(QUANTIZATIONS[name], "cuda:1") is expected


@pytest.mark.parametrize(("recent", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_compute_dtype_on_a_mac(*, recent: bool, expected: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metal computes in bf16 from macOS 14 on."""
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda _major, _minor: recent)
    assert compute_dtype(QUANTIZATIONS["nf4"], "mps") is expected


def test_compute_dtype_on_a_cpu() -> None:
    """A CPU computes in bf16."""
    assert compute_dtype(QUANTIZATIONS["nf4"], "cpu") is torch.bfloat16


def test_missing_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the command that installs it, an extra of its own."""
    monkeypatch.setattr(quantization, "find_spec", without("torchao"))
    with pytest.raises(MissingDependency, match=r"'torchao-fp8wo' needs torchao.*pytest-llmperf\[torchao\]"):
        check_available(QUANTIZATIONS["torchao-fp8wo"], "cpu")


@pytest.mark.parametrize(
    ("name", "device", "capability", "expected"),
    [
        ("torchao-int4wo", "cpu", (0, 0), "need a GPU of compute capability 8.0 or higher, and it is no GPU"),
        ("torchao-int4wo", "cuda:1", (7, 5), "capability 8.0 or higher, and it has 7.5"),
        ("torchao-fp8dq", "cuda", (8, 0), "capability 8.9 or higher, and it has 8.0"),
        ("torchao-int8wo", "mps", (0, 0), "torchao's kernels run on cpu and cuda"),
    ],
)
def test_devices_of_torchao(
    name: str, device: str, capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quantization whose kernels the device lacks is refused in one line, whether torchao is imported or not."""
    monkeypatch.setattr(quantization, "find_spec", lambda _name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    with pytest.raises(UsageError, match=expected) as caught:
        check_available(QUANTIZATIONS[name], device)
    assert str(caught.value).startswith(f"quantization {name!r} cannot run on {device!r}: ")


@pytest.mark.parametrize("name", TORCHAO)
def test_torchao_config(name: str) -> None:
    """Each is a configuration of torchao that transformers takes, and the kept modules stay dense."""
    pytest.importorskip("torchao")
    config = QUANTIZATIONS[name].transformers_config(torch.bfloat16, kept=["lm_head"])
    assert config is not None
    assert config.modules_to_not_convert == ["lm_head"]
    assert type(config.quant_type).__name__ == QUANTIZATIONS[name].torchao


def test_missing_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the command that installs it."""
    monkeypatch.setattr(quantization, "find_spec", without("bitsandbytes"))
    with pytest.raises(MissingDependency) as caught:
        check_available(QUANTIZATIONS["nf4"], "cpu")
    assert str(caught.value) == (
        "quantization 'nf4' needs bitsandbytes, which is not installed: pip install 'pytest-llmperf[models]'"
    )


@pytest.mark.parametrize("name", DENSE)
def test_dense_weights_need_no_bitsandbytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense weights run anywhere."""
    monkeypatch.setattr(quantization, "find_spec", without("bitsandbytes"))
    check_available(QUANTIZATIONS[name], "meta")


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_devices_of_bitsandbytes(name: str) -> None:
    """An unsupported device is refused with the supported ones, which include the CPU."""
    check_available(QUANTIZATIONS[name], "cpu")
    with pytest.raises(UsageError, match=rf"quantization '{name}' cannot run on 'vulkan': bitsandbytes .* cpu, cuda"):
        check_available(QUANTIZATIONS[name], "vulkan")
