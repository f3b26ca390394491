"""Blocks on several devices at once: whole pairs, kept when complete, alone again where neighbours disturb."""

from __future__ import annotations

import math
import random
import threading
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository import PlayedRuns

from pytest_llmperf.ab import blocks as blocks_module
from pytest_llmperf.ab.analysis import Standing
from pytest_llmperf.ab.blocks import BlockSeries
from pytest_llmperf.ab.lanes import Lane
from pytest_llmperf.ab.neighbours import disturbance, refuse_other_kinds
from pytest_llmperf.ab.side import Side
from pytest_llmperf.ab.stopping import Effort, measure_until_decided
from pytest_llmperf.cli.ab_output import _device_lines
from pytest_llmperf.errors import UsageError
from pytest_llmperf.metrics import METRICS, Limit
from pytest_llmperf.verdict.device_factor import device_difference
from pytest_llmperf.verdict.model import Outcome
from pytest_llmperf.verdict.paired import Block

TEST = "t.py::a"


def lanes(count):
    return [Lane(f"cuda:{index}", f"cuda:{index}") for index in range(count)]


class Machine(PlayedRuns):
    """Devices, each slower than the one before it by a tenth.

    Times depend on nothing but the process, so threads cannot change them. Blocks beside others run in threads.

    Args:
        spread: between processes.
        beside: times by which a process is slower beside others.
        change: head's, by device.
        invalid: why timings beside others are invalid.
        keys: device keys, by device.
        problem: what a process of an arm and a number raises or ends with.
    """

    def __init__(  # noqa: PLR0913  # one keyword for each property of a machine
        self, *, spread=0.004, beside=1.0, change=None, invalid="", keys=None, problem=None
    ):
        super().__init__(self._measured)
        self.running, self.processes = Counter(), Counter()
        self._own = threading.local()
        self._spread, self._beside, self._invalid = spread, beside, invalid
        self._change, self._keys, self._problem = change or {}, keys or {}, problem

    def __call__(self, arguments, **process):
        device = next(word.partition("=")[2] for word in arguments if word.startswith("--llmperf-device="))
        self._own.device = device
        self.processes[device] += 1
        self.running[device] += 1
        assert self.running[device] == 1, "two processes at once on one device"
        try:
            return super().__call__(arguments, **process)
        finally:
            self.running[device] -= 1

    def device_key(self):
        return self._keys.get(self._own.device, "gpu")

    def _measured(self, arm, number):
        if self._problem and (problem := self._problem(arm, number)):
            return problem
        device, is_beside = self._own.device, threading.current_thread() is not threading.main_thread()
        factor = self._change.get(device, 1.0) if arm == "head" else 1.0
        factor *= self._beside if is_beside else 1.0
        noise = math.exp(random.Random(f"{arm}{number}").gauss(0, self._spread))
        level = 5.0 * (1 + int(device.rpartition(":")[2]) / 10)
        cells = {"tpot_ms": level * factor * noise, "operators_per_token": 10.0}
        return {TEST: cells | ({"invalid": self._invalid} if self._invalid and is_beside else {})}


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Start or continue a series on a machine with some devices."""

    def begun(machine, count=2):
        monkeypatch.setattr(blocks_module, "run_perf_tests", machine)
        sides = [Side(name, "0" * 40, tmp_path, "python", {}) for name in ("base", "head")]
        return BlockSeries(tmp_path / "blocks", *sides, arguments=["-q"], seed=1, lanes=lanes(count))

    return begun


def finished(series, most=8):
    *_, standing = measure_until_decided(series, Effort(most_blocks=most))
    return standing


def tpot(standing):
    return next(verdict for verdict in standing.verdicts if verdict.cell.metric.name == "tpot")


def devices_of(series):
    return [block.device for block in series.blocks]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize(("change", "outcome"), [(1.0, Outcome.UNCHANGED), (1.15, Outcome.REGRESSED)])
def test_pairs_run_side_by_side_after_the_first(begin, count, change, outcome):
    """Levels of devices cancel: slow devices beside fast ones are no change."""
    changes = {f"cuda:{index}": change for index in range(count)}
    series = begin(Machine(change=changes), count)
    standing = finished(series)
    assert tpot(standing).outcome is outcome, tpot(standing).reason
    assert [block.number for block in series.blocks] == list(range(1, len(series.blocks) + 1))
    turns = [0, *(index % count for index in range(4))]
    assert devices_of(series) == [f"cuda:{turn}" for turn in turns for _ in range(2)][: len(series.blocks)]
    assert [block.beside for block in series.blocks[:3]] == [0, 0, min(count, 3) - 1][: len(series.blocks)]


def test_a_step_ends_with_the_last_block_that_is_wanted(begin):
    """Though more devices are free."""
    series = begin(Machine(change={"cuda:0": 1.03, "cuda:1": 1.03}, spread=0.03), 4)
    finished(series, most=9)
    assert devices_of(series) == ["cuda:0"] * 4 + ["cuda:1"] * 2 + ["cuda:2"] * 2 + ["cuda:3"]


class ThreeSecondsLeft(Effort):
    """Time for a block, which takes two seconds here, and not for a pair."""

    left_s = 3.0


def test_a_step_side_by_side_takes_the_time_of_two_blocks(begin):
    """One that would miss the deadline does not begin."""
    series = begin(Machine())
    list(measure_until_decided(series, ThreeSecondsLeft()))
    assert len(series.blocks) == 2


def test_what_each_device_measured_is_told(begin):
    """Nothing, if there is one."""
    series = begin(Machine())
    finished(series)
    counts = Counter(devices_of(series))
    assert list(_device_lines(series.blocks)) == [
        f"blocks by device: cuda:0 {counts['cuda:0']}, cuda:1 {counts['cuda:1']}"
    ]
    assert list(_device_lines(series.blocks[:2])) == []


def test_a_device_that_fails_ends_the_step_and_complete_blocks_are_kept(begin):
    """The same command goes on with those that are missing, on the devices that they began on."""
    machine = Machine(problem=lambda arm, number: 3 if (arm, number) == ("head", 4) else None)
    series = begin(machine)
    with pytest.raises(UsageError, match="head: pytest ended with exit code 3"):
        finished(series)
    assert machine.processes["cuda:0"] <= 8
    again = begin(other := Machine())
    assert [block.number for block in again.blocks] == [1, 2, 3]
    finished(again)
    assert devices_of(again)[:6] == ["cuda:0"] * 4 + ["cuda:1"] * 2
    assert other.processes["cuda:0"] == 2  # block 4 alone
    assert [block.number for block in again.blocks] == list(range(1, len(again.blocks) + 1))


def test_an_interruption_in_a_thread_is_one_of_the_command(begin):
    """Block 5 was not complete."""
    change = {"cuda:0": 1.15, "cuda:1": 1.15}

    def interrupted(arm, number):
        return KeyboardInterrupt() if (arm, number) == ("base", 5) else None

    with pytest.raises(KeyboardInterrupt):
        finished(begin(Machine(change=change, problem=interrupted)))
    finished(again := begin(Machine(change=change)))
    assert devices_of(again)[:6] == ["cuda:0"] * 4 + ["cuda:1"] * 2


def test_neighbours_that_disturb_each_other_measure_alone_again(begin):
    """It is said how much; the blocks beside others do not count, also for the same command later."""
    series = begin(machine := Machine(beside=1.2, change={"cuda:0": 1.15, "cuda:1": 1.15}))
    standing = finished(series)
    assert series.disturbed == f"TPOT of {TEST} is 20 % worse beside others than alone"
    assert devices_of(series) == ["cuda:0"] * 8
    assert not any(block.beside for block in series.blocks)
    assert tpot(standing).outcome is Outcome.REGRESSED
    assert machine.processes == {"cuda:0": 20, "cuda:1": 4}
    again = begin(other := Machine(beside=1.2, change={"cuda:0": 1.15, "cuda:1": 1.15}))
    assert finished(again).verdicts == standing.verdicts
    assert (again.disturbed, other.processes.total()) == (series.disturbed, 0)


def test_guards_that_object_beside_others_alone_are_a_disturbance(begin):
    """Those blocks count for nothing, and blocks alone take their place."""
    series = begin(Machine(invalid="load: other processes took 80 % of CPU time"))
    standing = finished(series)
    assert series.disturbed == (
        f"timings of {TEST} are invalid beside others, and not alone: load: other processes took 80 % of CPU time"
    )
    assert not any(block.beside for block in series.blocks)
    assert tpot(standing).outcome is Outcome.UNCHANGED


def test_devices_of_different_kinds_are_refused(begin):
    """After the first step, and at once by the same command."""
    message = r"^--device: cuda:1 is t4, and cuda:0 is h200: expected devices of one kind$"
    machine = Machine(keys={"cuda:0": "h200", "cuda:1": "t4"})
    with pytest.raises(UsageError, match=message):
        finished(begin(machine))
    processes = machine.processes.total()
    with pytest.raises(UsageError, match=message):
        finished(begin(machine))
    assert machine.processes.total() == processes


def test_a_change_on_one_device_alone_is_undecided(begin):
    """Neither device's is the change, nor is their mean."""
    standing = finished(begin(Machine(change={"cuda:1": 1.3})), most=16)
    verdict = tpot(standing)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.reason == "the change differs between devices: ×1.003 on cuda:0, ×1.299 elsewhere"
    assert [key[2] for key in standing.device_differences] == ["tpot_ms"]


def test_one_device_has_no_kinds_and_no_neighbours(begin):
    """Nor has a series without blocks."""
    series = begin(Machine(beside=2.0), 1)
    finished(series)
    assert disturbance(series.blocks) == disturbance([]) == ""
    refuse_other_kinds([])
    assert Standing(series.blocks).device_differences == {}


def blocks_of(seed, devices, changes, spread=0.01):
    chance = random.Random(seed)
    return {
        f"cuda:{device}": [
            Block(base=math.exp(chance.gauss(device, spread)), head=math.exp(chance.gauss(device, spread)) * change,
                  base_first=bool(at % 2), pair=at // 2)
            for at in range(4)
        ]
        for device, change in zip(range(devices), changes, strict=True)
    }  # fmt: skip


TPOT = METRICS["tpot_ms"]


@given(st.integers(), st.floats(0.5, 2.0), st.sampled_from([2, 3, 8]))
def test_a_change_common_to_all_devices_never_depends_on_its_size(seed, change, devices):
    """Nor on the devices' levels."""
    one, other = (blocks_of(seed, devices, [factor] * devices) for factor in (1.0, change))
    limit = Limit.of(TPOT)
    assert bool(device_difference(TPOT, limit, one)) == bool(device_difference(TPOT, limit, other))


@given(st.integers(), st.integers(0, 2), st.sampled_from([0.6, 1.6]))
def test_the_device_that_differs_is_named(seed, odd, change):
    """Whichever it is, and in whichever direction."""
    changes = [change if device == odd else 1.0 for device in range(3)]
    told = device_difference(TPOT, Limit.of(TPOT), blocks_of(seed, 3, changes))
    assert f"on cuda:{odd}, " in told


def test_equal_devices_rarely_seem_to_differ():
    """At most as often as the error probability says."""
    found = [bool(device_difference(TPOT, Limit.of(TPOT), blocks_of(seed, 3, [1.0] * 3, 0.05))) for seed in range(500)]
    assert sum(found) <= 5 + 7  # 1 % of 500, and three standard deviations


def test_undisturbed_neighbours_rarely_seem_to_disturb(begin):
    """Of 100 series with a large spread, and a slowdown that ``tolerate`` just accepts."""
    series = begin(Machine())
    finished(series)
    found = 0
    for seed in range(100):
        chance = random.Random(seed)
        blocks = [replaced(block, chance, 1.03 if block.beside else 1.0, 0.03) for block in series.blocks[:6]]
        found += bool(disturbance(blocks))
    assert found <= 1 + 3


@pytest.mark.parametrize("slow", [["base"], ["head"], ["base", "head"]], ids="-".join)
def test_a_disturbance_of_one_side_is_one(begin, slow):
    """Though it changes the ratio, which is no noise: a side that computes more is disturbed more."""
    series = begin(Machine())
    finished(series)
    chance = random.Random(1)
    blocks = [replaced(block, chance, 1.5 if block.beside else 1.0, 0.01, slow) for block in series.blocks[:6]]
    where = f" ({slow[0]})" if len(slow) == 1 else ""
    told = disturbance(blocks)
    assert told.startswith(f"TPOT of {TEST} is ")
    assert told.endswith(f" % worse beside others than alone{where}")


def replaced(block, chance, factor, spread, slow=("base", "head")):
    """A block with other times."""
    arms = {name: replace(arm) for name, arm in block.arms.items()}
    for name, arm in arms.items():
        key = next(key for key in arm.values if key[2] == "tpot_ms")
        arm.values[key] = 5.0 * (factor if name in slow else 1.0) * math.exp(chance.gauss(0, spread))
    return replace(block, arms=arms)
