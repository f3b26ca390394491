"""Names as they are shown."""

from __future__ import annotations

import pytest

from pytest_llmperf.text import short_name


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
    """A kernel's name holds colons."""
    assert short_name(test) == name
