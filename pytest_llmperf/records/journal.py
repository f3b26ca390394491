"""The journal of a run: a line when it starts and one as each test ends, so that a run that dies keeps its work."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from pytest_llmperf.records.schema import Baseline, Run, TestResult


class Journal:
    """An append-only ``.jsonl`` file of one run."""

    def __init__(self, path: Path, *, device_key: str, run: Run) -> None:
        self.path = path
        self._header = json.dumps({"device_key": device_key, "run": run.model_dump()})

    def append(self, result: TestResult) -> None:
        """Write what one test measured; it is on its way to the disk when this returns."""
        if not self.path.exists():
            self._create()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(result.model_dump_json(exclude_defaults=True) + "\n")

    def _create(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self._header + "\n", encoding="utf-8")


def read_journal(text: str) -> Baseline:
    """A journal's text as a baseline of one run. A last line cut short by a crash is left out.

    Raises:
        ValueError: it holds no complete header, or a line before the last is broken.
    """
    lines = text.splitlines()
    try:
        header = json.loads(lines[0])
        device_key, run = header["device_key"], Run.model_validate(header["run"])
    except (IndexError, KeyError, TypeError, json.JSONDecodeError, ValidationError) as error:
        raise ValueError("line 1: not the header of a run's journal") from error
    return baseline_of(device_key, run, _results(lines[1:]))


def baseline_of(device_key: str, run: Run, results: list[TestResult]) -> Baseline:
    """One run's results as a baseline with a window of one run."""
    return Baseline(
        device_key=device_key,
        runs=[run],
        workloads={result.workload.hash: result.workload for result in results},
        observations=[result.observation for result in results],
        cells=[cell for result in results for cell in result.cells],
    )


def _results(lines: list[str]) -> list[TestResult]:
    results = []
    for number, line in enumerate(lines, start=2):
        try:
            results.append(TestResult.model_validate_json(line))
        except ValidationError as error:
            if number == len(lines) + 1:
                break
            raise ValueError(f"line {number}: not a test's result") from error
    return results
