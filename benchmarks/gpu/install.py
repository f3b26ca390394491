"""Whether the plugin is installed, and what it finds on the machine."""

from __future__ import annotations

import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

from gpu.process import echo
from gpu.results import Results
from gpu.step import LLMPERF, PYTEST, Place

PACKAGES = ("torch", "transformers", "bitsandbytes", "triton", "nvidia-ml-py", "pytest", "pytest-xdist", "pydantic")
ON_CUDA = {"clock": "cuda events", "peak reserved": "", "NVML": "", "bf16": "", "torch.compile": ""}
"""What the doctor must find on a GPU, by subject, and how its detail must begin."""
ON_CPU = {"clock": "perf_counter", "peak allocated": ""}
ANYWHERE = {"peak allocated": "", "quantization bf16": "", "quantization nf4": "", "quantization int8": ""}

_FINDING = re.compile(r"^(.+?)\s+(yes|no)\b *(.*)$", re.MULTILINE)


def versions(_place: Place, results: Results) -> None:
    """The packages that decide what is measured; the plugin must be there with its entry point."""
    results.measured("python", sys.version.split()[0])
    for name in PACKAGES:
        results.measured(name, installed_version(name))
    results.compare("pytest-llmperf", expected="installed", found=installed_version("pytest-llmperf"),
                    holds=installed_version("pytest-llmperf") != "not installed")  # fmt: skip


def installed_version(name: str) -> str:
    """The version of a package, in words where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def entry_point(place: Place, results: Results) -> None:
    """Pytest loads the plugin by itself, in a folder that knows nothing of this repository."""
    code, said = echo([*PYTEST, "--help"], folder=place.folder)
    found = "--llmperf-model=" in said
    results.compare("pytest knows --llmperf-model", expected="exit 0, True", found=f"exit {code}, {found}")


def nvidia_smi(_place: Place, results: Results) -> None:
    """What the driver tells of the device; the log has it all."""
    if shutil.which("nvidia-smi") is None:
        results.skip("nvidia-smi", "it is not on the PATH")
        return
    code, said = echo(["nvidia-smi", "-q"])
    results.compare("nvidia-smi -q", expected="exit 0", found=f"exit {code}")
    for fact in ("Product Name", "Driver Version", "CUDA Version", "Persistence Mode", "Current Power Limit"):
        if found := re.search(rf"^\s*{fact}\s*: (.*)$", said, re.MULTILINE):
            results.measured(fact, found[1].strip())


def doctor(place: Place, results: Results) -> None:
    """``llmperf doctor``: what it must find is there, and all else is told."""
    code, said = echo([*LLMPERF, "doctor", "--device", place.device])
    results.compare("llmperf doctor", expected="exit 0", found=f"exit {code}")
    findings = {subject: (works, detail) for subject, works, detail in _FINDING.findall(said)}
    for subject, detail in {**ANYWHERE, **(ON_CUDA if place.is_cuda else ON_CPU)}.items():
        found = " ".join(findings.pop(subject, ("not told", ""))).strip()
        expected = f"yes {detail}".strip()
        results.compare(subject, expected=expected, found=found, holds=found.startswith(expected))
    for subject, told in findings.items():
        results.measured(subject, " ".join(told).strip())
