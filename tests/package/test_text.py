"""Display names, file names, and escaping of untrusted text."""

from __future__ import annotations

import pytest

from pytest_llmperf.text import printable, short_name, slug


@pytest.mark.parametrize(
    ("test", "name"),
    [
        ("a/test_perf.py::test_decode[nf4-1]", "test_decode[nf4-1]"),
        ("a/test_perf.py::TestLlama::test_decode", "test_decode"),
        ("a/test_perf.py::test_call[aten::mm-fp32]", "test_call[aten::mm-fp32]"),
        ("a/test_perf.py::test_call[x[0]]", "test_call[x[0]]"),
    ],
)
def test_a_tests_short_name_keeps_its_parameters_whole(test, name):
    """A kernel's name may contain colons."""
    assert short_name(test) == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", "nvidia-h200"),
        ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "nvidia-h100-80gb-hbm3-mig-1g-10gb"),
        ("AMD EPYC", "amd-epyc"),
        ("AMD EPYC 7763 64-Core Processor", "amd-epyc-7763"),
        ("Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz", "intel-xeon-platinum-8370c"),
        ("../../etc/passwd", "etc-passwd"),
        ("", "unknown"),
    ],
)
def test_a_devices_name_becomes_a_files_name(name, expected):
    """It is lower case, without trademarks and clock rates, and never a path."""
    assert slug(name) == expected


@pytest.mark.parametrize("text", ["\x1b[31mred", "two\nlines", "back\rward", "\u202eturned"])
def test_text_from_outside_cannot_steer_a_terminal(text):
    """Control characters are escaped; other characters are unchanged."""
    shown = printable(text)
    assert shown.isprintable()
    assert printable("×1.5 µs ok") == "×1.5 µs ok"
