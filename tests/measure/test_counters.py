"""Counts of operators and cache bytes."""

from __future__ import annotations

import torch

from pytest_llmperf.measure.counters import cache_bytes, count_operators


def test_operators_are_counted_one_by_one():
    """Composite operators count as their parts."""
    with count_operators() as count:
        torch.ones(2) + torch.ones(2)
    assert count.total == 3


def test_the_cache_of_an_unknown_kind_has_no_size():
    """The size is ``None``, not 0."""
    assert cache_bytes(object()) is None
