"""The garbage collector is paused during requests and skips library objects."""

from __future__ import annotations

import gc

import pytest

from pytest_llmperf.hardware.garbage_collector import collector_paused, set_libraries_aside


def test_it_is_paused_inside_and_goes_on_after_an_error():
    """It is enabled again after the block."""
    inside = []

    def fails():
        with collector_paused():
            inside.append(gc.isenabled())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert inside == [False]
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    """The user had disabled it."""
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_is_alive_is_set_aside_once():
    """Later objects are collected normally."""
    set_libraries_aside.cache_clear()  # an earlier test may have called it
    set_libraries_aside()
    aside = gc.get_freeze_count()
    later = [[]]
    set_libraries_aside()
    assert aside
    assert gc.get_freeze_count() <= aside
    assert any(one is later for one in gc.get_objects())
