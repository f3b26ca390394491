"""A git repository of a user, and blocks whose processes are played."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_llmperf.metrics import METRICS, Kind, Limit
from pytest_llmperf.storage.journal import Journal, Note
from pytest_llmperf.storage.schema import CellRun, Observation, Run, TestResult, Warmup, Workload
from pytest_llmperf.system.pytest_process import ProcessExit

Figures = Mapping[str, Mapping[str, float | None]]
"""Test, metric key, value."""

LIMITS = {
    name: Limit.of(METRICS[name])
    for name in ("tpot_ms", "operators_per_token", "ttft_ms", "decode_peak_allocated_bytes")
}


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path, files: Mapping[str, str]) -> str:
    """Write and commit files; returns the commit."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "change", "--allow-empty")
    return git(folder, "rev-parse", "HEAD")


class PlayedRuns:
    """Stands for `run_perf_tests`: writes the journal that a process with these figures would have written.

    ``figures`` gives the figures of the n-th process of an arm; a test with the value of an exception fails, and one
    with a text as ``invalid`` was disturbed. ``work`` is its counted work, ``mad_log`` the spread of its requests, and
    ``warmup`` its warm-up.
    Processes that measure only times leave out the other figures. ``environments`` are of arms.
    """

    def __init__(
        self,
        figures: Callable[[str, int], Mapping[str, Any]],
        *,
        output_tokens: int = 4,
        requests: int = 1,
        environments: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self._figures = figures
        self._environments = environments or {}
        self._output_tokens = output_tokens
        self._requests = requests
        self.calls: list[tuple[str, list[str]]] = []
        self.asked: list[tuple[str, list[str]]] = []
        self.arguments: list[str] = []
        self.times_only: list[bool] = []
        self.words = "played"

    def __call__(self, arguments: Sequence[str], **process: Any) -> ProcessExit:
        journal = Path(next(word.partition("=")[2] for word in arguments if word.startswith("--llmperf-journal=")))
        arm = journal.stem.partition("-")[2]
        only = [word.partition("=")[2] for word in arguments if word.startswith("--llmperf-only=")]
        self.calls.append((arm, only))
        self.arguments = [word for word in arguments if not word.startswith("--llmperf-")]
        self.asked.append((arm, self.arguments))
        times_only = "--llmperf-times-only" in arguments
        self.times_only.append(times_only)
        process["log"].write_text(self.words)
        figures = self._figures(arm, int(journal.stem[:4]))
        if isinstance(figures, BaseException):
            raise figures
        if isinstance(figures, int):
            return ProcessExit(figures, 1.0, process["log"])
        if times_only:
            figures = {test: _timed(cells) for test, cells in figures.items()}
        self._write(journal, {test: cells for test, cells in figures.items() if not only or test in only})
        return ProcessExit(0, 1.0, process["log"])

    def device_key(self) -> str:
        return "cpu"

    def _write(self, path: Path, figures: Mapping[str, Any]) -> None:
        environment = self._environments.get(path.stem.partition("-")[2], {})
        run = Run(
            run_id=path.stem, session_id="s", time="2026-01-01T00:00:00+00:00", commit=None, dirty=None,
            environment=dict(environment),
        )  # fmt: skip
        journal = Journal(path, device_key=self.device_key(), run=run)
        for test, cells in figures.items():
            if isinstance(cells, Exception):
                journal.append_note(Note(test=test, error=str(cells)))
            else:
                journal.append(self._result(test, path.stem, cells))
                journal.append_note(Note(test=test, limits=LIMITS))

    def _result(self, test: str, run: str, cells: Mapping[str, Any]) -> TestResult:
        tokens = self._output_tokens if run.endswith("head") else 4
        workload = Workload(
            engine="transformers", model="m", revision=None, quantization="fp32", dtype="float32", attention="sdpa",
            execution="loop", batch_size=1, input_tokens=4, output_tokens=tokens, sampling="greedy", prompt_sha256="0",
        )  # fmt: skip
        observation = Observation(
            run=run, test=test, workload=workload.hash, clock="fake", requests=self._requests, tokens_produced=4,
            attention_requested=None, warmup=cells.get("warmup", Warmup(requests=0, steady=False, drift=None)),
            invalid=cells.get("invalid", ""),
        )  # fmt: skip
        rows = [
            CellRun(
                test=test,
                workload=workload.hash,
                metric=metric,
                run=run,
                value=value,
                reason="" if value else "-",
                count=self._requests,
                mad_log=cells.get("mad_log"),
            )
            for metric, value in cells.items()
            if metric not in {"invalid", "work", "mad_log", "profile", "warmup"}
        ]
        return TestResult(
            workload=workload,
            observation=observation,
            cells=rows,
            work=cells.get("work", {}),
            profile=cells.get("profile", {}),
        )


def _timed(cells: Any) -> Any:
    if isinstance(cells, Exception):
        return cells
    return {name: value for name, value in cells.items() if name not in METRICS or METRICS[name].kind is Kind.TIMED}
