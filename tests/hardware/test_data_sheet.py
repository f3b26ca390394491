"""Data sheets of GPUs that are not here."""

from __future__ import annotations

import pytest

from pytest_llmperf.errors import UsageError
from pytest_llmperf.hardware.data_sheet import DATA_SHEETS, find_data_sheet

WANTED = {"a100-40", "a100-80", "h100", "h200", "b200", "l4", "l40s", "rtx-4090", "t4"}


def test_the_common_gpus_are_there():
    assert set(DATA_SHEETS) == WANTED
    h100 = find_data_sheet("h100")
    assert (h100.compute_capability, h100.memory_bytes) == ("9.0", 81559 * 1024**2)
    assert (h100.bytes_per_s, h100.flops_per_s["bfloat16"]) == (3.35e12, 989.5e12)


@pytest.mark.parametrize("sheet", DATA_SHEETS.values(), ids=DATA_SHEETS)
def test_rates_are_in_order(sheet):
    """Products in 16 bit are faster than in fp32 and slower than in int8, and bf16 needs capability 8.0."""
    rates = sheet.flops_per_s
    assert rates["float32"] < rates["float16"] < rates["int8"]
    assert ("bfloat16" in rates) == (sheet.capability >= (8, 0))
    assert 10**10 < sheet.memory_bytes < 2 * 10**11
    assert 1e11 < sheet.bytes_per_s < 1e13


@pytest.mark.parametrize(
    ("name", "memory", "capability"), [("48GiB:8.9", 48 * 1024**3, "8.9"), ("1.5gib:12.0", 1.5 * 1024**3, "12.0")]
)
def test_another_gpu_has_memory_and_capability(name, memory, capability):
    """Its rates are unknown."""
    sheet = find_data_sheet(name)
    assert (sheet.memory_bytes, sheet.compute_capability) == (memory, capability)
    assert (sheet.bytes_per_s, dict(sheet.flops_per_s)) == (None, {})


@pytest.mark.parametrize("name", ["", "h10", "48:8.9", "48GiB", "48GB:8.9", "48GiB:8", "-1GiB:8.9"])
def test_other_names_are_refused_in_a_line(name):
    with pytest.raises(UsageError, match=r"^--llmperf-fake .*: unknown device.*expected one of a100-40, [^\n]*$"):
        find_data_sheet(name)


def test_the_closest_name_is_suggested():
    with pytest.raises(UsageError, match="did you mean 'h200'"):
        find_data_sheet("H200")
