"""A user's repository with its own environment, in which the real command line runs.

Only counted metrics are measured: each source of the repository adds operators per token, and a slower revision adds
two more per source that it changes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_llmperf.verdict.verdict_file import VerdictFile, read_verdicts

FAST, SLOW = "TIMES = 1\n", "TIMES = 3\n"
SETTINGS = """
[tool.pytest.ini_options]
llmperf_model = "synthetic:tiny"
llmperf_device = "cpu"
llmperf_requests = 2
llmperf_warmup = 1
llmperf_guards = "none"
llmperf_gate = "operators_per_token"
llmperf_explain = "off"
"""
PACKAGE = """
[project]
name = "{name}"
version = "0.1"
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
"""
PERF_TEST = """
import {sources}
import pytest

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_decode(llm, llmperf):
    head = llm.model.get_output_embeddings()
    forward = head.forward

    def repeated(x):
        for _ in range(sum(source.TIMES for source in ({sources},))):
            x = x + 0
        return forward(x)

    head.forward = repeated
    llmperf.generate(llm, batch_size=1, input_tokens=8, output_tokens=4)
    head.forward = forward
"""
IGNORED = ".llmperf/\n__pycache__/\n*.egg-info\nbuild/\n"
CI_VARIABLES = ("CI", "BUILD_NUMBER", "GITHUB_ACTIONS", "GITHUB_BASE_REF", "GITHUB_RUN_ID", "PYTEST_ADDOPTS")
IDENTITY = {f"GIT_{role}_{field}": "a@b" for role in ("AUTHOR", "COMMITTER") for field in ("NAME", "EMAIL")}


@dataclass(frozen=True)
class Result:
    """Exit code and output of a command."""

    code: int
    text: str

    @property
    def last_line(self) -> str:
        return self.text.strip().splitlines()[-1]


@dataclass
class Layout:
    """A repository below ``folder``, its user's environment, and the variables of the user's shell."""

    folder: Path
    cache: Path
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = self.folder / "repository"
        self.environment = self.folder / "environment"
        self.root.mkdir(parents=True)
        self.verdicts_file = self.folder / "verdicts.json"

    def make_environment(self, folder: Path | None = None) -> None:
        """Create the user's environment, which falls back to the packages of the one that runs the tests."""
        self.environment = folder or self.environment
        if not self.environment.exists():
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.environment], check=True)
        (self.site / "_tests.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")

    @property
    def python(self) -> str:
        return str(self.environment / "bin" / "python")

    @property
    def site(self) -> Path:
        return Path(sysconfig.get_path("purelib", vars={"base": str(self.environment)}))

    @property
    def shell(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if name not in CI_VARIABLES}
        quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        return ours | IDENTITY | quiet | {"LLMPERF_CACHE": str(self.cache)} | self.variables

    def write(self, files: Mapping[str, str], root: Path | None = None) -> None:
        for name, text in files.items():
            path = (root or self.root) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def project(self, *sources: str, folder: str = ".", settings: str = SETTINGS) -> None:
        """Write a package ``engine`` with a perf test that asks each source (itself by default) how often to repeat."""
        names = ", ".join(sources or ("engine",))
        files = {
            "pyproject.toml": PACKAGE.format(name="engine") + settings,
            "src/engine/__init__.py": FAST,
            "tests/test_perf.py": PERF_TEST.format(sources=names),
        }
        self.write({f"{folder}/{name}": text for name, text in files.items()})

    def plain_project(self, *sources: str, settings: str = SETTINGS) -> None:
        """Write the same test without a package."""
        self.write({"pyproject.toml": settings, "tests/test_perf.py": PERF_TEST.format(sources=", ".join(sources))})

    def git(self, *arguments: str, folder: Path | None = None) -> str:
        command = ["git", *arguments]
        done = subprocess.run(
            command, cwd=folder or self.root, env=self.shell, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def begin(self, root: Path | None = None) -> None:
        """Create the repository with a first commit on ``main``."""
        self.write({".gitignore": IGNORED}, root)
        self.git("init", "-q", "-b", "main", ".", folder=root)
        self.commit("base", root)

    def offline(self, wheels: Path) -> None:
        """Install packages from a folder only."""
        self.variables |= {"PIP_FIND_LINKS": str(wheels), "PIP_NO_INDEX": "1"}
        self.variables |= {"UV_FIND_LINKS": str(wheels), "UV_OFFLINE": "1"}

    def commit(self, message: str, root: Path | None = None) -> None:
        self.git("add", "-A", folder=root)
        self.git("commit", "-qm", message, folder=root)

    def branch(self, files: Mapping[str, str], name: str = "change") -> None:
        """Commit these files on a new branch, as a pull request does."""
        self.git("switch", "-qc", name)
        self.write(files)
        self.commit(name)

    def clone(self, *options: str) -> None:
        """Replace the repository by a clone of it."""
        upstream = self.folder / "upstream"
        self.root.rename(upstream)
        self.git("clone", "-q", *options, f"file://{upstream}", str(self.root), folder=self.folder)

    def install(self, *what: str, dependencies: bool = False) -> None:
        """Install into the user's environment, with missing dependencies if requested."""
        pip = [self.python, "-m", "pip", "install", "-q", *([] if dependencies else ["--no-deps"])]
        subprocess.run(
            [*pip, "--no-build-isolation", *what], cwd=self.root, env=self.shell, check=True, capture_output=True
        )

    def run(self, *command: str, folder: Path | None = None) -> Result:
        done = subprocess.run(
            command, cwd=folder or self.root, env=self.shell, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return Result(done.returncode, done.stdout)

    def llmperf(self, *arguments: str, folder: Path | None = None) -> Result:
        return self.run(self.python, "-m", "pytest_llmperf", *arguments, folder=folder)

    def ab(self, *options: str, base: str = "main", tests: str = "tests", folder: Path | None = None) -> Result:
        written = f"--verdicts={self.verdicts_file}"
        return self.llmperf("ab", base, "--no-explain", written, *options, "--", tests, folder=folder)

    def gate(self, *options: str, tests: Sequence[str] = ("tests",)) -> Result:
        written = f"--verdicts={self.verdicts_file}"
        return self.llmperf("gate", "--no-explain", written, *options, "--", "-q", *tests)

    def pytest(self, *arguments: str) -> Result:
        return self.run(self.python, "-m", "pytest", *arguments)

    @property
    def verdicts(self) -> VerdictFile:
        return read_verdicts(self.verdicts_file)

    @property
    def more_operators(self) -> float:
        """The number of operators per token that head has more than base."""
        cells = [cell for test in self.verdicts.tests for cell in test.cells]
        (cell,) = (cell for cell in cells if cell.gates and cell.baseline is not None)
        return round(float(cell.value) - float(cell.baseline), 3)


def assert_red(result: Result) -> None:
    """Check that a real slowdown fails and is reported."""
    assert "Traceback" not in result.text, result.text
    assert result.code == 1, result.text
    assert re.search(r"^llmperf\b.*: 1 regressed", result.text, re.MULTILINE), result.text


def assert_refused(result: Result, *words: str) -> None:
    """Check that one line names the problem, with exit code 4, and nothing was compared."""
    assert "Traceback" not in result.text, result.text
    assert result.code == 4, result.text
    for word in words:
        assert word in result.last_line, result.text
