"""The real pynvml over a stub of the driver's library (``nvml_stub.c``)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from ctypes import CDLL
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_llmperf.hardware import gpu_monitor
from pytest_llmperf.hardware.environment import environment, nvml_handle
from pytest_llmperf.hardware.gpu_clocks import ClockState, clock_state
from pytest_llmperf.hardware.gpu_monitor import GpuConditions, watch_gpu
from pytest_llmperf.hardware.throttle_counters import violations

COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(not COMPILER, reason="there is no C compiler to build the stub with")

UUID = "4d1f0e55"
PROCESSES = "nvmlDeviceGetComputeRunningProcesses_v3"
GPU = {
    "uuid": f"GPU-{UUID}",
    "nvmlSystemGetDriverVersion": "580.159.04",
    "nvmlDeviceGetClockInfo(1)": 1980,
    "nvmlDeviceGetClockInfo(2)": 2619,
    "nvmlDeviceGetMaxClockInfo(1)": 1980,
    "nvmlDeviceGetApplicationsClock(0)": 1755,
    "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
    "nvmlDeviceGetTemperature(0)": 41,
    "nvmlDeviceGetTotalEnergyConsumption": 5_000_000_000,
    "nvmlDeviceGetMigMode": 0,
    "nvmlDeviceGetEccMode": 1,
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
    "nvmlDeviceGetViolationStatus(0)": 8_000_000_000_000,
    "nvmlDeviceGetViolationStatus(1)": 1_000_000_000,
    "nvmlDeviceGetViolationStatus(3)": 0,
    "nvmlDeviceGetViolationStatus(5)": 0,
    PROCESSES: os.getpid(),
    "nvmlDeviceGetMPSComputeRunningProcesses_v3": "",
}
INSTANCE = {**GPU, "uuid": f"MIG-{UUID}", "nvmlDeviceGetMigMode": 1}
NOT_TOLD = "the driver does not report all clocks and throttle reasons"
HIDDEN = "the driver hides other processes"
NOT_COUNTED = "the driver does not count all throttling"


def build(folder: Path, *options: str) -> Path:
    library = folder / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("nvml_stub.c")
    subprocess.run([COMPILER, "-shared", "-fPIC", *options, "-o", library, source], check=True)
    return library


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """The stub libraries, by driver name."""
    folder = tmp_path_factory.mktemp
    return {"new": build(folder("new")), "old": build(folder("old"), "-DOLD_DRIVER")}


def write(path: Path, answers: dict) -> None:
    path.write_text("".join(f"{question}={answer}\n" for question, answer in answers.items()))


@pytest.fixture
def driver(libraries, tmp_path, monkeypatch):
    """Returns a function that sets the driver's answers; pynvml has not loaded another driver before."""
    import pynvml
    import torch

    properties = SimpleNamespace(uuid=UUID, name="NVIDIA H100", total_memory=80 << 30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(gpu_monitor, "SHORTEST_ENERGY_S", 0.0)
    monkeypatch.setenv("NVML_STUB", str(tmp_path / "answers"))

    def answers(told: dict, *, of: str = "new") -> None:
        monkeypatch.setattr(pynvml, "nvmlLib", CDLL(str(libraries[of])))
        write(tmp_path / "answers", told)

    return answers


def watched() -> tuple[GpuConditions, object]:
    """Conditions of one timed request of ten tokens, and its energy."""
    with watch_gpu("cuda:0") as watch:
        watch.begin()
        watch.look()
        watch.end()
        return watch.conditions(), watch.energy(10)


@pytest.mark.parametrize(
    ("mask", "reasons"),
    [(0x4, ("SwPowerCap",)), (0x61, ("GpuIdle", "HwThermalSlowdown", "SwThermalSlowdown")), (0, ())],
)
def test_the_clocks_and_what_holds_them_back(driver, mask, reasons):
    """Throttle reasons have NVML's names, although NVML has two for each."""
    driver({**GPU, "nvmlDeviceGetCurrentClocksEventReasons": mask})
    assert clock_state("cuda:0") == ClockState(1980, 2619, reasons)


def test_what_is_read_around_a_timed_request(driver, monkeypatch):
    """Before, under load and after."""
    moments = iter([10.0, 12.0])
    monkeypatch.setattr(gpu_monitor, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    driver({**GPU, "nvmlDeviceGetClockInfo(1)": 210})
    with watch_gpu("cuda:0") as watch:
        watch.begin()
        driver({**GPU, "nvmlDeviceGetCurrentClocksEventReasons": 0x44})
        watch.look()
        later = {"nvmlDeviceGetTotalEnergyConsumption": 5_000_040_000, "nvmlDeviceGetViolationStatus(1)": 1_500_000_000}
        driver({**GPU, **later, "nvmlDeviceGetTemperature(0)": 71})
        watch.end()
        assert watch.energy(10).value == 4_000
        assert watch.conditions() == GpuConditions(
            sm_clock_before_mhz=210, sm_clock_under_load_mhz=1980, sm_clock_after_mhz=1980, sm_clock_full_mhz=1755,
            memory_clock_under_load_mhz=2619, throttle_reasons="HwThermalSlowdown SwPowerCap", temperature_before_c=41,
            temperature_after_c=71, other_processes_on_device=0, thermal_violation_share=0.25,
            power_violation_share=0.0, board_limit_violation_share=0.0, reliability_violation_share=0.0, nvml_reason="",
        )  # fmt: skip


@pytest.mark.parametrize("how", ["status", "field", "field alone", "neither"])
def test_throttling_is_counted(driver, monkeypatch, how):
    """By violation status, or by field value where nvidia-ml-py has no status."""
    import pynvml

    told = {question: answer for question, answer in GPU.items() if how == "status" or "Violation" not in question}
    if how == "field alone":
        monkeypatch.delattr(pynvml, "nvmlDeviceGetViolationStatus")
    if how.startswith("field"):
        told |= {"nvmlDeviceGetFieldValues(75)": 1_000_000_000, "nvmlDeviceGetFieldValues(74)": 8_000_000_000_000}
    driver(told)
    with nvml_handle("cuda:0") as (nvml, handle):
        counted = violations(nvml, handle)
    expected = {"thermal": 1_000_000_000, "power": 8_000_000_000_000}
    assert {name: counted[name] for name in expected} == (dict.fromkeys(expected) if how == "neither" else expected)
    assert counted["reliability"] == (0 if how == "status" else None)


@pytest.mark.parametrize(("told", "mig"), [(GPU, False), (INSTANCE, True)], ids=["GPU", "MIG instance"])
def test_the_environment(driver, told, mig):
    """Facts that torch does not know."""
    driver(told)
    facts = environment("cuda:0")
    assert (facts["driver"], facts["mig"], facts["ecc"]) == ("580.159.04", mig, True)
    assert facts["power_limit_w"] == 700.0


def test_a_mig_instance_has_the_clocks_of_its_gpu_and_processes_of_its_own(driver):
    """The energy counter covers all instances, so there is no figure."""
    driver({**INSTANCE, PROCESSES: f"{os.getpid()} 4000001"})
    conditions, energy = watched()
    assert (conditions.sm_clock_under_load_mhz, conditions.sm_clock_full_mhz) == (1980, 1755)
    assert (conditions.other_processes_on_device, conditions.nvml_reason) == (1, "")
    assert energy.reason == "a MIG instance has no energy counter of its own"


@pytest.mark.parametrize("code", [3, 4, 15, 999], ids=["not supported", "no permission", "GPU is lost", "unknown"])
@pytest.mark.parametrize("told", [GPU, INSTANCE], ids=["GPU", "MIG instance"])
def test_a_driver_that_refuses_everything(driver, told, code):
    """Values are None with a reason."""
    refusals = dict.fromkeys([*told, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle"], f"!{code}")
    driver({**refusals, "uuid": told["uuid"]})
    conditions, energy = watched()
    assert conditions == GpuConditions(nvml_reason=f"{NOT_TOLD}; {HIDDEN}; {NOT_COUNTED}")
    assert "energy counter" in energy.reason
    assert clock_state("cuda:0") == ClockState(reason=NOT_TOLD)
    facts = environment("cuda:0")
    assert [facts[name] for name in ("driver", "mig", "ecc", "power_limit_w")] == [None] * 4


def test_a_driver_that_is_older_than_pynvml(driver):
    """It lacks functions, which pynvml reports by two kinds of errors."""
    driver(GPU, of="old")
    conditions, energy = watched()
    assert (conditions.sm_clock_under_load_mhz, conditions.throttle_reasons) == (1980, None)
    assert conditions.other_processes_on_device is None
    assert conditions.nvml_reason == f"{NOT_TOLD}; {HIDDEN}"
    assert energy.reason == ""


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({**GPU, "nvmlInitWithFlags": "!9"}, "NVML does not start: Driver Not Loaded"),
        ({"uuid": "GPU-of-another"}, f"NVML found no device with UUID {UUID}"),
    ],
    ids=["no driver", "another device"],
)
def test_a_device_that_nvml_does_not_know(driver, told, reason):
    """Measuring continues, and the record has the reason."""
    driver(told)
    conditions, energy = watched()
    assert conditions == GpuConditions(nvml_reason=reason)
    assert energy.reason == clock_state("cuda:0").reason == reason
    assert "driver" not in environment("cuda:0")


MEASURING = f"""
import json, os, subprocess, sys
from pathlib import Path
from types import SimpleNamespace

import torch

from pytest_llmperf.hardware.gpu_monitor import watch_gpu

torch.cuda.get_device_properties = lambda device: SimpleNamespace(uuid={UUID!r})
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
ids = {{"self": os.getpid(), "parent": os.getppid(), "child": child.pid, "stranger": sys.argv[1]}}
ids |= {{f"{{name}} by the host": int(number) + 4_000_000 for name, number in ids.items()}}
told, found = Path(os.environ["NVML_STUB"]).read_text(), []
for names in json.loads(sys.argv[2]):
    listed = " ".join(str(ids[name]) for name in names)
    Path(os.environ["NVML_STUB"]).write_text(f"{{told}}{PROCESSES}={{listed}}\\n")
    with watch_gpu("cuda:0") as watch:
        found.append(watch.conditions().other_processes_on_device)
print(json.dumps(found))
child.communicate(b"\\n")
"""
LISTED = {
    ("self",): 0,
    ("self", "parent", "child"): 0,
    ("self", "parent", "child", "stranger"): 1,
    ("self by the host",): 0,
    ("self by the host", "parent by the host", "child by the host"): 0,
    ("self by the host", "parent by the host", "child by the host", "stranger by the host"): 1,
    (): None,
}


def test_real_processes(libraries, tmp_path):
    """This process measures nothing; it has a child that measures, a grandchild, and a child of another run."""
    write(tmp_path / "answers", {**GPU, PROCESSES: ""})
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    variables = {
        "LD_LIBRARY_PATH": str(libraries["new"].parent),
        "NVML_STUB": str(tmp_path / "answers"),
        "LLMPERF_DEVICE_USERS": "1",
        "LLMPERF_RUN_PID": "",  # which earlier runs in this process have set, and then a child is no stranger
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", MEASURING, str(stranger.pid), json.dumps([*LISTED])],
            env=os.environ | variables, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        stranger.communicate(b"\n")
    assert done.returncode == 0, done.stderr
    assert dict(zip(LISTED, json.loads(done.stdout), strict=True)) == LISTED
