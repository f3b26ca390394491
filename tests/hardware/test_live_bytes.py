"""Bytes of live tensors, by following their storages."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.hardware.live_bytes import LiveBytes


def bytes_tensor(size):
    return torch.empty(size, dtype=torch.uint8)


def test_views_share_a_storage_and_other_devices_do_not_count():
    live = LiveBytes("cpu")
    tensor = bytes_tensor(100)
    live.follow([tensor, tensor[10:], tensor.view(10, 10), torch.empty(50, device="meta")])
    assert (live.alive, live.peak) == (100, 100)
    view = tensor[10:]
    del tensor
    assert live.alive == 100
    del view
    assert (live.alive, live.peak) == (0, 100)


def test_a_phase_begins_with_what_is_alive():
    live = LiveBytes("cpu")
    kept, passing = bytes_tensor(100), bytes_tensor(200)
    live.follow([kept, passing])
    del passing
    assert live.peak == 300
    live.begin_peak()
    assert live.peak == 100


def test_a_storage_that_grows_counts_as_it_is_now():
    live = LiveBytes("cpu")
    tensor = bytes_tensor(100)
    live.follow([tensor])
    tensor.resize_(250)
    live.follow([tensor])
    assert (live.alive, live.peak) == (250, 250)
    tensor.untyped_storage().resize_(10)
    live.follow([tensor])
    assert (live.alive, live.peak) == (10, 250)


def test_each_storage_takes_whole_blocks():
    live = LiveBytes("cpu", block_bytes=512)
    tensors = [bytes_tensor(size) for size in (0, 1, 512, 513)]
    live.follow(tensors)
    assert live.alive == 0 + 512 + 512 + 1024


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 1000)), max_size=40))
def test_the_peak_is_the_largest_sum(steps):
    """Each step puts a tensor into one of five places, and frees what was there."""
    live, places, largest = LiveBytes("cpu"), {}, 0
    for place, size in steps:
        tensor = bytes_tensor(size)
        live.follow([tensor])
        largest = max(largest, sum(one.numel() for one in places.values()) + size)
        places[place] = tensor
        del tensor
    assert live.alive == sum(tensor.numel() for tensor in places.values())
    assert live.peak == largest
