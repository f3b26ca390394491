"""Report test data: two quantizations by two batch sizes, slower than the baseline."""

from __future__ import annotations

from random import Random

from pytest_llmperf.metrics import Limit
from pytest_llmperf.report.inputs import Evidence
from pytest_llmperf.storage.schema import (
    Baseline,
    CellRun,
    Epoch,
    Observation,
    Run,
    TestResult,
    Warmup,
    Workload,
)
from pytest_llmperf.verdict.comparison import Comparison
from pytest_llmperf.verdict.outcome import Entry, RunOutcome
from pytest_llmperf.verdict.verdict_file import VerdictFile, verdict_file

REQUESTS, TOKENS = 3, 5
TEST = "tests/test_perf.py::test_decode"


def workload(quantization: str = "nf4", batch_size: int = 1, model: str = "synthetic:tiny") -> Workload:
    return Workload(
        engine="transformers", model=model, revision="r", quantization=quantization, dtype="bfloat16",
        attention="sdpa", execution="loop", batch_size=batch_size, input_tokens=4, output_tokens=TOKENS,
        sampling="greedy", prompt_sha256=str(batch_size),
    )  # fmt: skip


def run_record(run_id: str, day: int) -> Run:
    return Run(
        run_id=run_id, session_id=f"session {run_id}", time=f"2026-01-{day:02}T00:00:00+00:00", commit="c" * 40,
        dirty=False, environment={"torch": "2", "device_name": "fake"},
    )  # fmt: skip


def result(test: str, ran: Workload, run_id: str, tpot_ms: float) -> TestResult:
    """Return a result whose gaps grow with the position: 0.8, 0.9, 1.1 and 1.2 times their mean."""
    gaps = [tpot_ms * share for _ in range(REQUESTS) for share in (0.8, 0.9, 1.1, 1.2)]
    figures = {
        "tpot_ms": tpot_ms, "weights_bytes": 2**30 // (1 + len(ran.quantization) % 3), "load_ms": 9.0,
        "decode_peak_allocated_bytes": 2**31, "token_digest": "5e1f", "decode_tokens_per_s": 1000 / tpot_ms,
    }  # fmt: skip
    return TestResult(
        workload=ran,
        observation=Observation(
            run=run_id, test=test, workload=ran.hash, clock="fake", requests=REQUESTS, tokens_produced=15,
            attention_requested=None, warmup=Warmup(requests=4, steady=True, drift=0.0), conditions={"load": 0.5},
        ),
        cells=[CellRun(test=test, workload=ran.hash, metric=key, run=run_id, value=v) for key, v in figures.items()],
        samples={"tpot_ms": [tpot_ms * share for share in (0.99, 1.0, 1.01)], "itl_ms": gaps},
    )  # fmt: skip


def tests_of(*, model: str, name: str) -> list[tuple[str, Workload]]:
    return [(f"{name}[{q}-{b}]", workload(q, b, model)) for q in ("nf4", "int8") for b in (1, 8)]


def baseline(*, model: str = "synthetic:tiny", name: str = TEST, reason: str = "a safer kernel") -> Baseline:
    """Return twelve runs in a session each; TPOT rises by a tenth from the seventh on, which was accepted."""
    noise = Random(1)
    runs = [run_record(f"run {number:02}", 1 + number) for number in range(12)]
    results = [
        result(test, ran, run.run_id, noise.gauss(1, 0.002) * (1.0 if number < 6 else 1.1))
        for number, run in enumerate(runs)
        for test, ran in tests_of(model=model, name=name)
    ]
    return Baseline(
        device_key="fake",
        runs=runs,
        workloads={one.workload.hash: one.workload for one in results},
        observations=[one.observation for one in results],
        cells=[cell for one in results for cell in one.cells],
        epochs=[
            Epoch(test=test, metric="tpot_ms", time=runs[5].time, commit=None, reason=reason)
            for test, _ in tests_of(model=model, name=name)
        ],
    )


def evidence(
    *, model: str = "synthetic:tiny", name: str = TEST, reason: str = "a safer kernel", error: str = ""
) -> Evidence:
    """Return the evidence of the next run, in which nf4 takes half as long again."""
    past, now = baseline(model=model, name=name, reason=reason), run_record("now", 20)
    results = [
        result(test, ran, now.run_id, 1.65 if ran.quantization == "nf4" else 1.1)
        for test, ran in tests_of(model=model, name=name)
    ]
    comparison = Comparison(past, now.environment)
    entries = [
        Entry(
            test=one.observation.test,
            device_key="fake",
            run=now,
            results=[one],
            verdicts=comparison.verdicts(one, Limit.of),
        )
        for one in results
    ]
    if error:
        entries.append(Entry(test=f"{name}_broken", device_key="fake", run=now, error=error))
    return Evidence(verdicts=verdicts_of(entries), results=results, baseline=past)


def verdicts_of(entries: list[Entry]) -> VerdictFile:
    outcome = RunOutcome(compared=True, entries=entries, differences=["torch: 1 -> 2", "kernel: None -> 6"])
    return verdict_file(outcome, command=["pytest", "--llmperf"], exit_code=1)
