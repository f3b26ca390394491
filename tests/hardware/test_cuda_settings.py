"""CUDA settings that change figures are part of the environment."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pytest_llmperf.hardware.cuda_settings import UNSET, cuda_settings
from pytest_llmperf.storage.comparability import FIELDS, Weight, blocking, compare_environments

VARIABLES = {
    "CUDA_LAUNCH_BLOCKING": ("cuda_launch_blocking", "1"),
    "CUBLAS_WORKSPACE_CONFIG": ("cublas_workspace", ":4096:8"),
    "PYTORCH_CUDA_ALLOC_CONF": ("cuda_allocator", "expandable_segments:True"),
    "PYTORCH_ALLOC_CONF": ("cuda_allocator", "backend:cudaMallocAsync"),
}


@pytest.fixture(autouse=True)
def _unset(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_that_is_set_keeps_runs_apart(monkeypatch, name):
    """Such runs differ from runs without the variable."""
    field, value = VARIABLES[name]
    before = cuda_settings()
    assert before[field] == UNSET
    monkeypatch.setenv(name, value)
    assert cuda_settings() == before | {field: value}
    (difference,) = blocking(compare_environments(before, cuda_settings()))
    assert str(difference) == f"{field}: default -> {value}"


def test_what_means_off_is_not_set(monkeypatch):
    """``CUDA_LAUNCH_BLOCKING=0`` or an empty value."""
    before = cuda_settings()
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "0")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    assert cuda_settings() == before


def test_tf32_is_told_however_it_was_turned_on(monkeypatch):
    """By any switch of this torch."""
    assert cuda_settings()["fp32_precision"] == "matmul ieee, cudnn tf32"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert cuda_settings()["fp32_precision"] == "matmul tf32, cudnn tf32"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("whole", "matmul", "conv", "expected"),
    [
        ("none", "none", "none", "matmul ieee, cudnn ieee"),
        ("tf32", "none", "ieee", "matmul tf32, cudnn ieee"),
        ("none", "tf32", "tf32", "matmul tf32, cudnn tf32"),
    ],
)
def test_new_switches_inherit(monkeypatch, whole, matmul, conv, expected):
    """As in torch 2.9 and later."""
    fake = SimpleNamespace(
        fp32_precision=whole,
        cuda=SimpleNamespace(matmul=SimpleNamespace(fp32_precision=matmul)),
        cudnn=SimpleNamespace(conv=SimpleNamespace(fp32_precision=conv)),
    )
    monkeypatch.setattr(torch, "backends", fake)
    assert cuda_settings()["fp32_precision"] == expected


def test_old_switches_are_read(monkeypatch):
    """As in torch before 2.9."""
    fake = SimpleNamespace(
        cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=True)), cudnn=SimpleNamespace(allow_tf32=False)
    )
    monkeypatch.setattr(torch, "backends", fake)
    assert cuda_settings()["fp32_precision"] == "matmul tf32, cudnn ieee"


def test_each_is_a_field_that_blocks():
    assert {FIELDS[name] for name in cuda_settings()} == {Weight.BLOCKS}
