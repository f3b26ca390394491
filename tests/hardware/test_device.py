"""Device names, and the devices they resolve to."""

from __future__ import annotations

import pytest
import torch

from pytest_llmperf.errors import UsageError
from pytest_llmperf.hardware.device import check_device_name, resolve_device, torch_device


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:3", "xpu", "xpu:0", "mps", "fake-cpu", "fake-cuda"])
def test_known_devices_have_these_forms(name):
    """Valid names are accepted."""
    check_device_name(name)


@pytest.mark.parametrize(
    "name", ["", "gpu", "cuda:", "cuda:x", "cpu:0", "CUDA", "cuda:-1", "fake-mps", "fake-cuda:0", "fake-"]
)
def test_other_names_are_no_devices(name):
    """They are refused before torch is imported."""
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
    with pytest.raises(UsageError, match=r"'xpu:2' is not available: torch .* sees 2 xpu devices"):
        resolve_device("xpu:2")


def test_a_fake_device_is_for_those_who_ask():
    """Its name stays; torch's name for it is that of the device it stands for."""
    assert resolve_device("fake-cpu", fakes=True) == "fake-cpu"
    assert [torch_device(name) for name in ("fake-cpu", "fake-cuda", "fake-xpu", "cuda:1", "cpu")] == [
        "cpu", "cuda:0", "xpu:0", "cuda:1", "cpu",
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r"^device 'fake-cpu' is none, and this needs one: "):
        resolve_device("fake-cpu")


@pytest.mark.parametrize(("name", "built"), [("fake-cuda", "cuda"), ("fake-xpu", "xpu")])
def test_a_fake_device_needs_the_build_of_its_kind(monkeypatch, name, built):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, built, None)
    with pytest.raises(UsageError, match=rf"^device '{name}' needs torch built for {built}, found [^\n]*use fake-cpu$"):
        resolve_device(name, fakes=True)
    monkeypatch.setattr(torch.version, built, "1.0")
    assert resolve_device(name, fakes=True) == name
