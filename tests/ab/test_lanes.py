"""The devices of a comparison: how they are named, and what of them is refused."""

from __future__ import annotations

import os
import sys

import pytest

from pytest_llmperf.ab.lanes import ANY_DEVICE, Lane, parse_lanes
from pytest_llmperf.cli import main
from pytest_llmperf.errors import UsageError

needs_cores = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs a choice of cores")


@pytest.fixture
def sixteen_cores(monkeypatch):
    """A system that lets us use cores 0 to 15."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(16)), raising=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, (ANY_DEVICE,)),
        ("cuda", (Lane("cuda", "cuda"),)),
        ("cpu", (Lane("cpu", "cpu"),)),
        ("cuda:1, cuda:0", (Lane("cuda:1", "cuda:1"), Lane("cuda:0", "cuda:0"))),
        ("xpu:0,xpu:1", (Lane("xpu:0", "xpu:0"), Lane("xpu:1", "xpu:1"))),
        ("cpu:3", (Lane("cpu:3", "cpu", frozenset({3})),)),
        (
            "cpu:0-1+8-9,cpu:2+3+10-11",
            (
                Lane("cpu:0-1+8-9", "cpu", frozenset({0, 1, 8, 9})),
                Lane("cpu:2+3+10-11", "cpu", frozenset({2, 3, 10, 11})),
            ),
        ),
    ],
)
def test_devices_are_numbered_ones_or_sets_of_cores(sixteen_cores, text, expected):
    """One alone may be any device."""
    assert parse_lanes(text, ["-q"]) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "--device : expected a device such as cuda:0, or cores such as cpu:0-3"),
        ("gpu", "--device gpu: expected a device such as cuda:0, or cores such as cpu:0-3"),
        ("cuda:0,\x1b[1m", r"--device \x1b[1m: expected a device such as cuda:0, or cores such as cpu:0-3"),
        ("cuda:0,", "--device : expected a device such as cuda:0, or cores such as cpu:0-3"),
        ("cpu:x", "--device cpu:x: expected a range of cores such as cpu:0-3, or several such as cpu:0-3+8-11"),
        ("cpu:3-1", "--device cpu:3-1: core 3 is above 1: expected the smaller one first"),
        ("cpu:14-16", ("--device cpu:14-16: expected cores that this process may use, which are 0, 1, 2, 3, 4, 5, 6, "
                      "7, 8, 9, 10, 11, 12, 13, 14, 15")),
        ("cuda:0,cuda:1,cuda:0", "--device: cuda:0 is named twice: expected each device once"),
        ("cpu:0-3,cpu:3-6", "--device: cpu:3-6 shares core 3 with another set: expected disjoint sets"),
        ("cpu:0-3,cpu:4-5", "--device cpu:0-3,cpu:4-5: found 4 and 2 cores: expected as many in each set"),
        ("cuda:0,cpu:0-3", "--device cuda:0,cpu:0-3: expected devices of one kind"),
        ("cuda:0,xpu:0", "--device cuda:0,xpu:0: expected devices of one kind"),
        ("cpu,cpu:0-3", ("--device cpu, one of 2: expected each to have a number or cores, such as cuda:0,cuda:1 or "
                        "cpu:0-3,cpu:4-7")),
        ("auto,cuda:0", ("--device auto, one of 2: expected each to have a number or cores, such as cuda:0,cuda:1 or "
                        "cpu:0-3,cpu:4-7")),
    ],
)  # fmt: skip
def test_bad_devices_are_refused(sixteen_cores, text, words):
    """With what was found and what is expected."""
    with pytest.raises(UsageError) as refused:
        parse_lanes(text, [])
    assert str(refused.value) == words


def test_a_huge_range_of_cores_is_refused_at_once(sixteen_cores):
    """Without listing it."""
    with pytest.raises(UsageError, match="expected cores that this process may use"):
        parse_lanes("cpu:0-99999999999999", [])


def test_a_system_that_cannot_choose_cores_says_so(monkeypatch):
    """And what can be used there."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    with pytest.raises(UsageError, match=r"^--device cpu:0: this system cannot keep a process on some cores: expected"):
        parse_lanes("cpu:0", [])


@pytest.mark.parametrize("command", [["ab", "HEAD"], ["gate"]])
@pytest.mark.parametrize("second", ["--device=cuda:1", "--device", "--llmperf-device=cpu"])
def test_a_second_device_after_the_dashes_is_refused(capsys, command, second):
    """It would decide for both."""
    assert main([*command, "--device=cuda:0,cuda:1", "--", second]) == 4
    assert f"--device cuda:0,cuda:1 and, after --, {second}: name the device once" in capsys.readouterr().err


@needs_cores
def test_a_process_has_its_cores_before_it_starts(tmp_path):
    """Torch starts as many threads; the command itself keeps its cores."""
    from pytest_llmperf.system.pytest_process import run_perf_tests

    ours = os.sched_getaffinity(0)
    core = min(ours)
    (tmp_path / "conftest.py").write_text("import os, torch\nprint(os.sched_getaffinity(0), torch.get_num_threads())\n")
    variables = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    log = tmp_path / "log"
    run_perf_tests(["-p", "no:cacheprovider"], python=sys.executable, folder=tmp_path, environment=variables, log=log,
                   cores={core})  # fmt: skip
    assert f"{{{core}}} 1\n" in log.read_text()
    assert os.sched_getaffinity(0) == ours
