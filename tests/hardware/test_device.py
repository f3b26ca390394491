"""Device names, and the devices they resolve to."""

from __future__ import annotations

import pytest
import torch

from pytest_llmperf.errors import UsageError
from pytest_llmperf.hardware.device import check_device_name, resolve_device


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:3", "xpu", "xpu:0", "mps"])
def test_known_devices_have_these_forms(name):
    """Valid names are accepted."""
    check_device_name(name)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cpu:0", "CUDA", "cuda:-1"])
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
