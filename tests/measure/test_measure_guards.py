"""Conditions read around a measurement, and guards that invalidate it."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from fake_nvml import FakeNvml

from pytest_llmperf import ModelSpec
from pytest_llmperf.errors import UsageError
from pytest_llmperf.hardware import cpu_monitor, environment, gpu_clocks, gpu_monitor
from pytest_llmperf.hardware.cpu_monitor import HostConditions, HostWatch, ProcessorTime, others_share, processor_time
from pytest_llmperf.hardware.environment import NvmlUnavailableError
from pytest_llmperf.hardware.gpu_monitor import GpuConditions, other_processes
from pytest_llmperf.measure import doctor
from pytest_llmperf.measure.bench import Bench
from pytest_llmperf.measure.generation import Plan
from pytest_llmperf.measure.guards import GUARDS, MOST_OF_OTHERS, ObservedConditions, parse_guards, watch
from pytest_llmperf.measure.progress import TIMED_REQUESTS, Progress
from pytest_llmperf.storage.schema import Observation, Warmup

ALL = frozenset(GUARDS)


def observed(*, device="cpu", share=0.0, misplaced="", disturbed=0, **gpu):
    conditions = HostConditions(
        load_average_before=0.1, load_average_after=0.1, cpu_clock_before_mhz=None, cpu_clock_after_mhz=None,
        other_processes_cpu_share=share,
    )  # fmt: skip
    return ObservedConditions(
        device=device, host=conditions, gpu=GpuConditions(**gpu) if device != "cpu" else None, misplaced=misplaced,
        requests=10, disturbed=disturbed,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("what", "objection"),
    [
        ({"share": MOST_OF_OTHERS}, ""),
        (
            {"share": 0.41},
            "other processes took 41 % of CPU time, expected 25 % at most (guard load)",
        ),
        ({"share": None}, ""),
        ({"device": "cuda:0", "share": 0.9}, ""),
        ({"disturbed": 5}, ""),
        ({"disturbed": 6}, "CPU contention slowed 6 of 10 requests, expected 50 % at most (guard disturbance)"),
        ({"disturbed": None}, ""),
        (
            {"misplaced": "'w' on 'meta', expected 'cpu'"},
            "the model has 'w' on 'meta', expected 'cpu' (guard placement)",
        ),
        ({"device": "cuda:1", "other_processes_on_device": 0}, ""),
        ({"device": "cuda:1", "other_processes_on_device": 1}, "1 other process on cuda:1 (guard tenants)"),
        ({"device": "cuda:1", "other_processes_on_device": 2}, "2 other processes on cuda:1 (guard tenants)"),
        ({"device": "cuda:1", "nvml_reason": "nvidia-ml-py is not installed"}, ""),
        ({"device": "cuda:0", "throttle_reasons": "ApplicationsClocksSetting SwPowerCap SyncBoost"}, ""),
        (
            {"device": "cuda:0", "throttle_reasons": "HwSlowdown HwThermalSlowdown SwPowerCap"},
            "clocks of cuda:0 reduced by HwSlowdown, HwThermalSlowdown (guard throttling)",
        ),
        ({"device": "cuda:0", "thermal_violation_share": 0.01}, ""),
        (
            {"device": "cuda:0", "throttle_reasons": "", "thermal_violation_share": 0.034},
            "clocks of cuda:0 reduced by heat for 3.4 % of the time, expected 1 % at most (guard throttling)",
        ),
        (
            {"device": "cuda:0", "throttle_reasons": "SwThermalSlowdown", "thermal_violation_share": 0.0},
            "clocks of cuda:0 reduced by SwThermalSlowdown (guard throttling)",
        ),
        (
            {
                "device": "cuda:0",
                "power_violation_share": 0.9,
                "board_limit_violation_share": 0.9,
                "reliability_violation_share": 0.9,
            },
            "",
        ),
        ({"device": "cuda:0", "sm_clock_under_load_mhz": 990, "sm_clock_full_mhz": 1980}, ""),
        (
            {"device": "cuda:0", "sm_clock_under_load_mhz": 345, "sm_clock_full_mhz": 1980},
            "SM clock 345 of 1980 MHz under load, expected 50 % or more (guard clocks)",
        ),
        ({"device": "cuda:0", "sm_clock_under_load_mhz": 345}, ""),
    ],
)
def test_what_a_guard_objects_to(what, objection):
    """Objections are one line; unknown values and disabled guards cause none."""
    assert observed(**what).objection(ALL) == objection
    assert observed(**what).objection(frozenset()) == ""


def test_every_objection_is_told():
    """In the order of the documentation."""
    both = observed(share=0.5, disturbed=10).objection(ALL)
    assert both.index("guard load") < both.index("; ") < both.index("guard disturbance")


@pytest.mark.parametrize("text", ["", ",", "noise", "load,noise", "all,load", "none,load"])
def test_an_unknown_guard_is_refused(text):
    """The error lists the guards."""
    with pytest.raises(UsageError, match=r"--llmperf-guards .*: expected all, none, or some of tenants, throttling"):
        parse_guards(text)


def test_guards_by_name():
    """All, none, or some."""
    assert parse_guards("all") == ALL
    assert parse_guards("none") == frozenset()
    assert parse_guards(" load, clocks") == {"load", "clocks"}


def test_others_take_what_is_busy_and_not_own():
    """A share of all available processors, never below 0."""
    start = ProcessorTime(passed=100.0, busy=50.0, own=20.0)
    assert others_share(start, ProcessorTime(passed=104.0, busy=53.0, own=21.0)) == 0.5
    assert others_share(start, ProcessorTime(passed=104.0, busy=51.0, own=21.1)) == 0.0
    assert others_share(start, ProcessorTime(passed=100.1, busy=50.1, own=20.0)) is None
    assert others_share(None, start) is others_share(start, None) is None


def test_processor_time_only_grows_and_own_time_is_busy():
    """On this system."""
    start = processor_time()
    sum(range(300_000))
    end = processor_time()
    assert end.passed > start.passed
    assert end.own > start.own
    assert end.busy >= start.busy


@pytest.mark.parametrize("after", [("prefill", "decode"), ()], ids=["generation", "serving"])
def test_the_timed_requests_are_the_span(monkeypatch, after):
    """Other phases are excluded."""
    times = iter([ProcessorTime(0.0, 0.0, 0.0), ProcessorTime(10.0, 6.0, 2.0)])
    monkeypatch.setattr(cpu_monitor, "processor_time", lambda: next(times))
    progress = Progress("cpu")
    with watch("cpu", progress) as watched:
        for phase in ("warm-up", TIMED_REQUESTS, *after):
            progress.enter(phase)
    assert progress.watchers == []
    assert watched.observed(observation(), misplaced="").host.other_processes_cpu_share == 0.4


def test_a_host_that_tells_nothing(monkeypatch):
    """Values are None, not 0."""

    def refuse():
        raise NotImplementedError

    monkeypatch.setattr(cpu_monitor.psutil, "cpu_freq", refuse)
    monkeypatch.delattr(os, "getloadavg", raising=False)
    assert set(vars(HostWatch().conditions()).values()) == {None}


def observation():
    return Observation(
        run="r", test="t", workload="w", clock="fake", requests=2, disturbed_requests=0, tokens_produced=4,
        attention_requested=None, warmup=Warmup(requests=0, steady=False, drift=None),
    )  # fmt: skip


OURS = os.getpid()

LOADED = {
    "SmClock": [210, 1500, 1400, 1980],
    "MemoryClock": [405, 2619, 2619, 2619],
    "CurrentClocksEventReasons": [1, 4, 68, 1],
    "MaxClockInfo": 1980,
    "ApplicationsClock": 1755,
    "Temperature": [40, 71],
    "TotalEnergyConsumption": [5_000, 45_000],
    "ViolationStatus(0)": [7_000_000_000, 8_000_000_000],
    "ViolationStatus(1)": [3_000_000, 23_000_000],
    "ViolationStatus(3)": 5,
    "ViolationStatus(5)": [9, 8],
    "ComputeRunningProcesses": [OURS],
}


@pytest.fixture
def watched(monkeypatch):
    """Conditions of two timed requests that take 2 s, on a device with the given NVML values."""

    def of(**told):
        fake = FakeNvml(**told)
        fake.started = 0
        fake.told["ComputeRunningProcesses"] = [told.get("ComputeRunningProcesses", [])]
        for module in (gpu_monitor, gpu_clocks):
            monkeypatch.setattr(module, "nvml_handle", fake.handle)
        clock = iter([10.0, 12.0])
        monkeypatch.setattr(gpu_monitor, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        progress = Progress("cuda:1")
        monkeypatch.setattr(progress, "moment", lambda: None)
        with watch("cuda:1", progress) as found:
            progress.enter(TIMED_REQUESTS)
            for _ in range(2):
                progress.tell_request(None)
            progress.enter("prefill")
        return found

    return of


def test_a_device_is_read_before_under_load_and_after(watched):
    """Clocks under load are read right after a request; earlier idling is no throttling."""
    found = watched(**{name: list(told) if isinstance(told, list) else told for name, told in LOADED.items()})
    assert found.observed(observation(), misplaced="").gpu == GpuConditions(
        sm_clock_before_mhz=210, sm_clock_under_load_mhz=1450, sm_clock_after_mhz=1980, sm_clock_full_mhz=1755,
        memory_clock_under_load_mhz=2619, throttle_reasons="HwThermalSlowdown SwPowerCap", temperature_before_c=40,
        temperature_after_c=71, other_processes_on_device=0, thermal_violation_share=0.01, power_violation_share=0.5,
        board_limit_violation_share=0.0, reliability_violation_share=None,
        nvml_reason="the driver does not count all throttling",
    )  # fmt: skip
    energy = found.gpu.energy(tokens_per_request=10)
    assert (energy.metric, energy.value) == ("energy_mj_per_token", 40_000 / 20)


def test_a_driver_that_tells_nothing_is_no_objection(watched):
    """Values are None with a reason."""
    found = watched()
    told = found.observed(observation(), misplaced="")
    assert told.gpu == GpuConditions(
        nvml_reason="the driver does not report all clocks and throttle reasons; the driver hides other processes; "
        "the driver does not count all throttling"
    )
    assert told.objection(ALL) == ""
    assert found.gpu.energy(1).reason == "the driver has no energy counter for this device"


def test_a_mig_instance_has_the_clocks_of_its_gpu_and_its_own_processes(watched):
    """It has no energy figure."""
    found = watched(IsMig=True, SmClock=1980, TotalEnergyConsumption=1, ComputeRunningProcesses=[OURS, OURS + 1])
    told = found.observed(observation(), misplaced="").gpu
    assert (told.sm_clock_under_load_mhz, told.other_processes_on_device) == (1980, 1)
    assert found.gpu.energy(1).reason == "a MIG instance has no energy counter of its own"


def test_energy_of_a_moment_is_none(monkeypatch, watched):
    """The counter updates in steps."""
    monkeypatch.setattr(gpu_monitor, "SHORTEST_ENERGY_S", 5.0)
    energy = watched(TotalEnergyConsumption=[1, 2]).gpu.energy(1)
    assert energy.reason == "timed for 2 s, expected 5 s or more: the counter updates every 100 ms"


def test_a_device_without_nvml(monkeypatch):
    """Measuring continues; the record has the reason."""

    def unavailable(_device):
        raise NvmlUnavailableError("nvidia-ml-py is not installed")

    monkeypatch.setattr(gpu_monitor, "nvml_handle", unavailable)
    progress = Progress("cuda:0")
    monkeypatch.setattr(progress, "moment", lambda: None)
    with watch("cuda:0", progress) as found:
        progress.enter(TIMED_REQUESTS)
        progress.tell_request(None)
        progress.enter("prefill")
    told = found.observed(observation(), misplaced="")
    assert told.gpu == GpuConditions(nvml_reason="nvidia-ml-py is not installed")
    assert found.gpu.energy(1).reason == "nvidia-ml-py is not installed"
    assert told.conditions["sm_clock_before_mhz"] is None


@pytest.mark.parametrize(
    ("pids", "mps", "others"),
    [
        ([OURS], [], 0),
        ([OURS, 71], [], 1),
        ([OURS, 71], [72], 2),
        ([], [], None),
        ([4_000_001], [], 0),  # the host's id of this process, as a container's driver may tell it
        ([4_000_001, 4_000_002], [], 1),
    ],
    ids=["alone", "one other", "one more by MPS", "hidden", "another namespace", "another namespace, two"],
)
def test_processes_of_others(monkeypatch, pids, mps, others):
    """Ids may belong to another namespace or be hidden; then the count is unknown, not 0."""
    monkeypatch.setattr(gpu_monitor, "own_processes", lambda: [SimpleNamespace(pid=OURS)])
    nvml = FakeNvml(ComputeRunningProcesses=[pids], MPSComputeRunningProcesses=[mps])
    assert other_processes(nvml, "handle") == others


def test_what_this_process_started_is_no_other(monkeypatch):
    """Such as a worker of an engine."""
    monkeypatch.setattr(gpu_monitor, "run_process_ids", lambda: {OURS, 71})
    monkeypatch.setattr(gpu_monitor, "own_processes", lambda: [SimpleNamespace(pid=OURS), SimpleNamespace(pid=71)])
    assert other_processes(FakeNvml(ComputeRunningProcesses=[[OURS, 71]]), "handle") == 0
    assert other_processes(FakeNvml(ComputeRunningProcesses=[[4_000_001, 4_000_002]]), "handle") == 0


def test_what_waits_for_this_process_is_no_other(monkeypatch):
    """By id, or by the number of ancestors that use the device if ids are the host's."""
    monkeypatch.setattr(gpu_monitor, "own_processes", lambda: [SimpleNamespace(pid=OURS)])
    monkeypatch.setattr(gpu_monitor, "USERS_ABOVE", 1)
    assert other_processes(FakeNvml(ComputeRunningProcesses=[[OURS, os.getppid()]]), "handle") == 0
    assert other_processes(FakeNvml(ComputeRunningProcesses=[[4_000_001, 4_000_002]]), "handle") == 0
    assert other_processes(FakeNvml(ComputeRunningProcesses=[[4_000_001, 4_000_002, 4_000_003]]), "handle") == 1


def test_the_doctor_examines_a_mig_instance(monkeypatch):
    """NVML reports no power limit for an instance."""
    monkeypatch.setattr(doctor, "nvml_handle", FakeNvml(IsMig=True, EnforcedPowerLimit=700_000).handle)
    assert doctor._nvml("cuda:0").detail == "power limit 700 W"
    monkeypatch.setattr(doctor, "nvml_handle", FakeNvml().handle)
    assert doctor._nvml("cuda:0").detail == "no power limit"


def test_the_environment_of_a_mig_instance_is_that_of_its_gpu(monkeypatch):
    """MIG mode, and the shared power limit."""
    monkeypatch.setattr(
        environment, "nvml_handle", FakeNvml(IsMig=True, MigMode=(1, 1), EnforcedPowerLimit=700_000).handle
    )
    assert environment._nvml_facts("cuda:0") == {"driver": "580.1", "mig": True, "ecc": None, "power_limit_w": 700.0}


def test_a_model_that_a_test_has_moved_is_noticed(model_cache):
    """Checked after measuring; the conditions are recorded with the results."""
    import torch

    bench = Bench("cpu", frozenset({"placement"}))
    loaded = bench.models.get(ModelSpec("synthetic:tiny", "fp32"))
    plan = Plan(batch_size=1, input_tokens=2, output_tokens=2, execution="loop", requests=1, warmup_cap=0)
    sound = bench.measure(loaded, plan, test="test", run_id="run").observation
    assert sound.invalid == ""
    assert sound.conditions["copy_bytes_per_s"] > 0
    assert {"load_average_before", "other_processes_cpu_share"} <= set(sound.conditions)
    loaded.model.register_buffer("left_behind", torch.empty(1, device="meta"))
    moved = bench.measure(loaded, plan, test="test", run_id="run").observation
    assert moved.invalid == "the model has 'left_behind' on 'meta', expected 'cpu' (guard placement)"
