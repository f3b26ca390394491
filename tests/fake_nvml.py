"""Fake of NVML: it answers the questions that a test gives answers for, and refuses all others as a driver does."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

GPU, INSTANCE = "the whole GPU", "a MIG instance"


class FakeNvml:
    NVML_CLOCK_GRAPHICS, NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 0, 1, 2, 0
    NVML_PERF_POLICY_POWER, NVML_PERF_POLICY_THERMAL = 0, 1
    NVML_PERF_POLICY_BOARD_LIMIT, NVML_PERF_POLICY_RELIABILITY = 3, 5
    NVML_FI_DEV_PERF_POLICY_POWER, NVML_FI_DEV_PERF_POLICY_THERMAL = 74, 75
    NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT, NVML_FI_DEV_PERF_POLICY_RELIABILITY = 77, 79
    nvmlClocksEventReasonGpuIdle = 1  # noqa: N815  # NVML's name
    nvmlClocksEventReasonSwPowerCap = 4  # noqa: N815  # NVML's name
    nvmlClocksThrottleReasonSwPowerCap = 4  # noqa: N815  # NVML's name
    nvmlClocksEventReasonHwThermalSlowdown = 64  # noqa: N815  # NVML's name
    nvmlClocksEventReasonAll = 511  # noqa: N815  # NVML's name

    class NVMLError(Exception):
        pass

    class NVMLLibraryMismatchError(Exception):
        pass

    def __init__(self, **told) -> None:
        """``told``: answers by function name without ``nvmlDeviceGet``. A list is consumed; its last answer repeats."""
        self.told = {"IsMig": False, **told}
        self.started = 1

    @contextmanager
    def handle(self, _device: str):
        """Fake ``nvml_handle``."""
        self.started += 1
        yield self, INSTANCE if self.told["IsMig"] else GPU
        self.started -= 1

    def answer(self, question: str, handle: str):
        if not self.started or question not in self.told or (handle == INSTANCE and not question.endswith("Processes")):
            raise self.NVMLError
        told = self.told[question]
        return (told.pop(0) if len(told) > 1 else told[0]) if isinstance(told, list) else told

    def nvmlDeviceIsMigDeviceHandle(self, handle, /):  # noqa: N802  # NVML's name
        return handle == INSTANCE

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle, /):  # noqa: N802  # NVML's name
        assert handle == INSTANCE
        return GPU

    def nvmlDeviceGetClockInfo(self, handle, kind, /):  # noqa: N802  # NVML's name
        return self.answer("SmClock" if kind == self.NVML_CLOCK_SM else "MemoryClock", handle)

    def nvmlDeviceGetMaxClockInfo(self, handle, _kind):  # noqa: N802  # NVML's name
        return self.answer("MaxClockInfo", handle)

    def nvmlDeviceGetApplicationsClock(self, handle, _kind):  # noqa: N802  # NVML's name
        return self.answer("ApplicationsClock", handle)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):  # noqa: N802  # NVML's name
        return self.answer("CurrentClocksEventReasons", handle)

    def nvmlSystemGetDriverVersion(self):  # noqa: N802  # NVML's name
        return "580.1"

    def nvmlDeviceGetMigMode(self, handle, /):  # noqa: N802  # NVML's name
        return self.answer("MigMode", handle)

    def nvmlDeviceGetEccMode(self, handle):  # noqa: N802  # NVML's name
        return self.answer("EccMode", handle)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):  # noqa: N802  # NVML's name
        return self.answer("EnforcedPowerLimit", handle)

    def nvmlDeviceGetTemperature(self, handle, _sensor):  # noqa: N802  # NVML's name
        return self.answer("Temperature", handle)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802  # NVML's name
        return self.answer("TotalEnergyConsumption", handle)

    def nvmlDeviceGetViolationStatus(self, handle, policy, /):  # noqa: N802  # NVML's name
        return SimpleNamespace(violationTime=self.answer(f"ViolationStatus({policy})", handle))

    def nvmlDeviceGetFieldValues(self, handle, _fields):  # noqa: N802  # NVML's name
        raise self.NVMLError

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802  # NVML's name
        return [SimpleNamespace(pid=pid) for pid in self.answer("ComputeRunningProcesses", handle)]

    def nvmlDeviceGetMPSComputeRunningProcesses(self, handle):  # noqa: N802  # NVML's name
        return [SimpleNamespace(pid=pid) for pid in self.answer("MPSComputeRunningProcesses", handle)]
