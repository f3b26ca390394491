"""Golden lines: one-line texts of verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from verdict_cells import MIB, make_cell

from pytest_llmperf.metrics import METRICS
from pytest_llmperf.verdict.judge import judge
from pytest_llmperf.verdict.model import Cell, Outcome, Verdict
from pytest_llmperf.verdict.sentence import format_value, sentence, short_sentence

RUNS = [4.1, 4.3, 4.2, 4.25, 4.2]
TEN_SESSIONS = [[4.20 + 0.01 * (i % 3)] for i in range(10)]
MEMORY, COUNTER, DIGEST = "decode_peak_allocated_bytes", "operators_per_token", "token_digest"


@pytest.mark.parametrize(
    ("cell", "line"),
    [
        (
            make_cell(6.42, RUNS),
            "TPOT ×1.525 [1.38, 1.69]: 6.42 ms > 4.21 ms baseline, limit ×1.02 (p=2e-06, 5 runs in 1 session)",
        ),
        (
            make_cell(4.21, RUNS),
            (
                "TPOT ×1.000 [0.90, 1.11]: 4.21 ms, baseline 4.21 ms; "
                "inconclusive: this baseline finds 26 % or more (5 runs in 1 session)"
            ),
        ),
        (
            make_cell(4.9, RUNS, tolerate=0.0),
            (
                "TPOT ×1.164 [1.05, 1.29]: 4.90 ms, baseline 4.21 ms; "
                "inconclusive: this baseline finds 26 % or more (5 runs in 1 session)"
            ),
        ),
        (
            make_cell(4.21, *TEN_SESSIONS),
            "TPOT ×1.000 [0.995, 1.005]: 4.21 ms, baseline 4.21 ms, limit ×1.02; unchanged (10 runs in 10 sessions)",
        ),
        (
            make_cell(3.0, RUNS),
            (
                "TPOT ×0.713 [0.64, 0.79]: 3.00 ms < 4.21 ms baseline, limit ×1.02; "
                "improved (p=2e-05, 5 runs in 1 session)"
            ),
        ),
        (
            make_cell(100.0, [150.0, 152.0, 151.0, 149.0], metric="decode_tokens_per_s"),
            (
                "decode rate ×0.664 [0.60, 0.74]: 100 tokens/s < 150 tokens/s baseline, limit ×0.9804 "
                "(p=3e-06, 4 runs in 1 session)"
            ),
        ),
        (
            make_cell(475, [467] * 5, metric=COUNTER),
            "operators / token ×1.017: 475 > 467 baseline, limit 467 (exact, 5 runs)",
        ),
        (
            make_cell(467.0004, [467], metric=COUNTER),
            "operators / token ×1.000: 467.0004 > 467 baseline, limit 467 (exact, 1 run)",
        ),
        (
            make_cell(467, [467] * 5, metric=COUNTER),
            "operators / token ×1.000: 467, baseline 467, limit 467; unchanged (exact, 5 runs)",
        ),
        (
            make_cell(312 * MIB, [248 * MIB] * 5, metric=MEMORY),
            "decode peak allocated ×1.258: 312 MiB > 248 MiB baseline, limit 264 MiB (exact, 5 runs)",
        ),
        (
            make_cell(312 * MIB, [0] * 5, metric=MEMORY),
            "decode peak allocated 312 MiB > 0 B baseline, limit 16.0 MiB (exact, 5 runs)",
        ),
        (
            make_cell(1000 * MIB, [400 * MIB, 450 * MIB], metric=MEMORY),
            (
                "decode peak allocated ×2.357 [1.99, 2.79]: 1000 MiB > 424 MiB baseline, limit ×1.038 "
                "(varies between identical runs, p=1e-06, 2 runs in 1 session)"
            ),
        ),
        (
            make_cell(312 * MIB, [0, 50 * MIB], metric=MEMORY),
            (
                "decode peak allocated 312 MiB; "
                "inconclusive: varies between identical runs, and one of them is 0: no ratio"
            ),
        ),
        (
            make_cell("3f2a", ["3f2a"] * 2, metric=DIGEST),
            "token digest 3f2a, baseline 3f2a; unchanged (identity, 2 runs)",
        ),
        (
            make_cell("9c01", ["3f2a"], metric=DIGEST),
            "token digest 9c01, not 3f2a as in the baseline (identity, 1 run)",
        ),
        (
            make_cell("9c01", ["3f2a", "9c01"], metric=DIGEST),
            "token digest 9c01; inconclusive: not deterministic: the baseline holds 2 different values",
        ),
        (make_cell(4.0), "TPOT 4.00 ms: new, no baseline to compare with"),
        (make_cell(None, reason="needs CUDA"), "TPOT: new, not measured: needs CUDA"),
        (make_cell(None, [4.0], reason="the test\nwas skipped"), "TPOT: missing, the test was skipped"),
        (make_cell(None, [4.0]), "TPOT: missing"),
        (make_cell(math.nan, [4.0]), "TPOT: invalid, expected a finite number, got nan"),
        (
            make_cell(4.0, [math.inf]),
            "TPOT: invalid, expected a finite number, got inf in the baseline's run run-0-0",
        ),
    ],
)
def test_golden_lines(cell: Cell, line: str) -> None:
    """Each kind of verdict has its line."""
    assert sentence(judge(cell)) == line


def test_flagged_line_names_what_is_missing() -> None:
    """A flagged cell that was not confirmed names the level it missed."""
    verdict = judge(make_cell(5.4, RUNS), family_size=1000)
    assert sentence(verdict) == (
        "TPOT ×1.283 [1.16, 1.42]: 5.40 ms, baseline 4.21 ms; inconclusive: "
        "flagged by the screen, not confirmed: p=0.0002, needs 1e-05 (5 runs in 1 session)"
    )


def test_confirmed_line_holds_the_mean_of_all_runs() -> None:
    """With confirmations, the quotient of the two values still equals the ratio."""
    line = sentence(judge(make_cell(6.42, RUNS), confirmations=[6.3, 6.2]))
    assert line.startswith("TPOT ×1.498 [1.36, 1.66]: 6.31 ms > 4.21 ms baseline, ")


def test_verdicts_of_others_have_a_line() -> None:
    """Outcomes set elsewhere are shown with their reason."""
    cell = make_cell(4.0, [4.0])
    verdict = Verdict(cell=cell, outcome=Outcome.NOT_COMPARABLE, kind=cell.metric.kind, reason="torch 2.9, not 2.8")
    assert sentence(verdict) == "TPOT 4.00 ms: not comparable, torch 2.9, not 2.8"


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("tpot_ms", 4.2, "4.20 ms"),
        ("tpot_ms", 0.0123, "12.3 us"),
        ("tpot_ms", 999.4, "999 ms"),
        ("tpot_ms", 999.7, "1.00 s"),
        ("tpot_ms", 12345, "12.3 s"),
        ("tpot_ms", 0.0, "0 ms"),
        ("weights_bytes", 512, "512 B"),
        ("weights_bytes", 1536, "1.50 KiB"),
        ("weights_bytes", 248 * MIB, "248 MiB"),
        ("weights_bytes", 5.1 * 1024**3, "5.10 GiB"),
        ("decode_tokens_per_s", 45.25, "45.2 tokens/s"),
        ("decode_tokens_per_s", 12345.6, "12346 tokens/s"),
        ("decode_tokens_per_s", 0.25, "0.25 tokens/s"),
        ("flops_per_token", 1.234e9, "1.23 GFLOP"),
        ("flops_per_token", 217088.0, "217 kFLOP"),
        ("prefill_flops", 2e13, "20.0 TFLOP"),
        ("flops_growth", 512.0, "512 FLOP"),
        ("moved_bytes_per_token", 3.1 * MIB, "3.10 MiB"),
        ("operators_growth", -1.5, "-1.5"),
        ("operators_per_token", 475.0, "475"),
        ("operators_per_token", 475.25, "475.25"),
        ("token_digest", "3f2a", "3f2a"),
        ("tpot_ms", None, "n/a"),
        ("tpot_ms", math.nan, "nan"),
    ],
)
def test_format_value(metric: str, value: float | str | None, text: str) -> None:
    """Values get a unit that suits their size and three digits; counts are trimmed."""
    assert format_value(METRICS[metric], value) == text


@pytest.mark.parametrize("value", [1e-300, 1e300])
@pytest.mark.parametrize("window", [[1e-300], [1e300, 1e-300], [1e300]])
@pytest.mark.parametrize("metric", ["tpot_ms", MEMORY, COUNTER])
def test_extremes_stay_one_short_line(value: Any, window: Sequence[float], metric: str) -> None:
    """No magnitude raises an error or gives a long line."""
    line = sentence(judge(make_cell(value, window, metric=metric)))
    assert "\n" not in line
    assert len(line) < 250


def test_a_verdict_on_an_anchor_says_since_when():
    """The revision is named for every outcome; the rest of the sentence is the same."""
    since = [
        (make_cell(6.42, RUNS), "TPOT ×1.525 [1.38, 1.69] since v1: 6.42 ms > 4.21 ms baseline, limit ×1.02 ("),
        (make_cell(4.21, RUNS), "TPOT ×1.000 [0.90, 1.11] since v1: 4.21 ms, baseline 4.21 ms; "),
        (make_cell(6.42), "TPOT 6.42 ms since v1: new, no baseline"),
    ]
    for cell, start in since:
        assert sentence(replace(judge(cell), against="v1")).startswith(start)
    assert short_sentence(replace(judge(make_cell(6.42, RUNS)), against="v1")) == "TPOT ×1.525 since v1"
