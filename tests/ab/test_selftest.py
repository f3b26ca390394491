"""A selftest counts what its comparisons said, stops in time, and says how small a slowdown can be seen."""

from __future__ import annotations

import json
import math
import re
import sys
from itertools import cycle

import numpy as np
import pytest
from repository import PlayedRuns

from pytest_llmperf.ab import blocks as series_module
from pytest_llmperf.ab.selftest import parse_sizes
from pytest_llmperf.cli import main
from pytest_llmperf.errors import UsageError
from pytest_llmperf.metrics import METRICS, Limit
from pytest_llmperf.stats.alpha_spending import late, nominal_levels
from pytest_llmperf.stats.binomial import lower_bound, rate_interval, upper_bound
from pytest_llmperf.stats.student_t import quantile
from pytest_llmperf.system.pytest_process import ProcessExit
from pytest_llmperf.verdict.paired import FEWEST_TO_CHANGE, LOOKS, detectable_change

NOISE = (0.0, 0.004, -0.006, 0.002, -0.003, 0.005, -0.001, 0.003)


class SlowedRuns(PlayedRuns):
    """Processes of two tests that are slower by what is injected; ``seen`` bends it."""

    def __init__(self, seen=lambda share: share, *, operators=10.0, seconds=1.0, dies_at=0):
        super().__init__(self._figures_of)
        self.share, self.seen, self.operators, self.seconds, self.dies_at = 0.0, seen, operators, seconds, dies_at
        self.injected = []

    def __call__(self, arguments, **process):
        texts = [word.partition("=")[2] for word in arguments if word.startswith("--llmperf-inject=")]
        self.injected += texts
        self.share = sum(float(re.search(r"\+(.+)%", text)[1]) / 100 for text in texts)
        if len(self.calls) + 1 == self.dies_at:
            raise KeyboardInterrupt
        ended = super().__call__(arguments, **process)
        return ProcessExit(ended.exit_code, self.seconds, ended.log)

    def _figures_of(self, arm, number):
        noise = 1 + NOISE[(number * 3 + len(arm)) % len(NOISE)]
        factor = 1 + self.seen(self.share) if arm == "head" else 1.0
        operators = self.operators if arm == "head" else 10.0
        return {
            test: {"tpot_ms": 5.0 * factor * noise, "operators_per_token": operators} for test in ("t.py::a", "t.py::b")
        }


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """The command with played processes: its exit code, its lines and its JSON."""
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def selftest(played, *arguments):
        monkeypatch.setattr(series_module, "run_perf_tests", played)
        code = main(["selftest", "--json", "out/found.json", *arguments])
        return code, capsys.readouterr().out.splitlines(), json.loads((tmp_path / "out" / "found.json").read_text())

    return selftest


def test_a_quiet_machine_sees_every_slowdown_and_raises_no_alarm(run):
    """Two tests, three pairs: six decisions of each size; only head is slowed down."""
    played = SlowedRuns()
    code, lines, found = run(played, "--pairs", "3", "--sizes", "20%,10%")
    assert code == 0
    null, ten, twenty = found["null"], *found["sizes"]
    assert (null["decisions"], null["decided"], null["found"]) == (6, 6, 0)
    assert (ten["size"], ten["found"], ten["decisions"], ten["blocks"]) == (0.1, 6, 6, 8.0)
    assert twenty["measured"] == pytest.approx(0.2, abs=0.01)
    assert found["smallest_seen"] == 0.1
    assert set(played.injected) == {"sleep:+10%", "sleep:+20%"}
    assert len(played.injected) == 2 * 3 * 8
    assert {spread["test"]: spread["blocks"] for spread in found["spreads"]} == {"t.py::a": 12, "t.py::b": 12}
    assert "false alarms: 0 of 6 A/A decisions, 95 % upper bound of the rate 39.3 %" in lines
    assert "smallest slowdown seen: +10 % (regressed in 6 of 6 decisions; the rate may be as low as 54%)" in lines
    assert "cost: 2.0 min of measuring" in lines
    assert lines[0] == "A/A, 1 of 3: 0 of 2 cells regressed (4 blocks, 0.1 min)"
    assert lines[-1] == "llmperf selftest: passed"


def test_a_slowdown_that_is_missed_fails(run):
    """What hides from the clock is not seen, and a smaller one that is seen does not make up for it."""
    code, lines, found = run(SlowedRuns(lambda share: 0.0 if share > 0.1 else share), "--pairs", "1")
    assert code == 1
    assert found["smallest_seen"] is None
    assert lines[-1] == "llmperf selftest: failed: +15 % was missed"


@pytest.mark.parametrize("alarm", [{"seen": lambda share: 0.2}, {"operators": 11.0}], ids=["timed", "exact"])
def test_a_false_alarm_fails(run, alarm):
    """Of a timed metric or of an exact one."""
    code, lines, found = run(SlowedRuns(**alarm), "--pairs", "1", "--sizes", "20%")
    assert code == 1
    assert found["null"]["found"] + found["exact_alarms"] == 2
    assert lines[-1].startswith("llmperf selftest: failed: a false alarm")


def test_the_budget_ends_it_and_what_it_cut_is_not_counted(run, monkeypatch):
    """No comparison is begun for which not even eight blocks are left; an undecided one was cut."""
    clock = iter(range(0, 10**9, 20))
    monkeypatch.setattr("pytest_llmperf.ab.stopping.time.monotonic", lambda: float(next(clock)))
    code, lines, found = run(SlowedRuns(seconds=10.0), "--budget", "90s")
    assert code == 1
    assert found["cut"] == 1
    assert found["null"]["decisions"] == 0
    assert found["null"]["minutes"] > 0
    assert "not counted" in lines[0]
    assert "no A/A cell was decided" in lines[-1]


def test_a_machine_that_decides_nothing_does_not_pass(run):
    """No false alarm where nothing is ever decided says nothing. Two tests, up in one process and down in the next."""
    shaking = cycle([0.1, -0.1, -0.1, 0.1])
    played = SlowedRuns(lambda share: share or next(shaking))
    code, lines, found = run(played, "--pairs", "1", "--sizes", "20%", "--blocks", "8")
    assert (code, found["null"]["decided"], found["null"]["found"]) == (1, 0, 0)
    assert "no A/A cell was decided: allow more --budget or --blocks" in lines[-1]


def test_an_interruption_tells_what_is_known(run):
    """With pytest's exit code of one."""
    code, lines, found = run(SlowedRuns(dies_at=14), "--pairs", "2", "--sizes", "20%")
    assert code == 2
    assert found["null"]["decisions"] == 2
    assert "llmperf selftest: interrupted; results so far:" in lines


def test_a_test_that_fails_ends_it(tmp_path, monkeypatch, capsys):
    """The working tree's own tests must pass."""
    played = PlayedRuns(lambda _arm, _number: {"t.py::a": ValueError("no such layer")})
    monkeypatch.setattr(series_module, "run_perf_tests", played)
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path))
    assert main(["selftest"]) == 4
    assert capsys.readouterr().err == "llmperf: t.py::a: no such layer\n"


def test_sizes_are_shares_in_order():
    """However they are given."""
    assert parse_sizes("15%, +2.5%,5%") == [0.025, 0.05, 0.15]


@pytest.mark.parametrize("text", ["", "5", "0%", "5%,", "-5%"])
def test_other_sizes_are_refused(text):
    """In one line."""
    with pytest.raises(UsageError, match=r"expected slowdowns above 0, such as 5%,10%,15%"):
        parse_sizes(text)


def test_exact_bounds():
    """Known values: 0 of 60 and 38 of 40 one-sided, 5 of 10 two-sided; nothing is known of no trial."""
    assert upper_bound(0, 60) == pytest.approx(0.0487, abs=1e-4)
    assert lower_bound(38, 40) == pytest.approx(0.8516, abs=1e-3)
    assert rate_interval(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)
    assert rate_interval(0, 0) == (0.0, 1.0)


def test_a_budget_ends_it_with_what_is_known(project, model_cache):
    """The real command in a user's project: one block is one A/A pair's beginning, and decides nothing."""
    project.write(conftest="")
    project.pytester.makeini("""
        [pytest]
        llmperf_device = cpu
        llmperf_model = synthetic:tiny
        llmperf_input_tokens = 4
        llmperf_output_tokens = 4
        llmperf_requests = 2
    """)
    result = project.pytester.run(
        sys.executable, "-m", "pytest_llmperf", "selftest", "--blocks=8", "--pairs=1", "--sizes=100%", "--budget=1s",
        "--json=found.json", "--", "-p", "no:benchmark",
    )  # fmt: skip
    assert result.ret == 1, result.errlines
    result.stdout.fnmatch_lines(["A/A, 1 of 1: 0 of 1 cells regressed (1 block, *; ended by the budget, not counted)"])
    result.stdout.fnmatch_lines(
        ["llmperf selftest: failed: no A/A cell was decided: allow more --budget or --blocks, *"]
    )
    assert json.loads((project.path / "found.json").read_text())["null"]["decided"] == 0
    assert not list(project.path.glob("baselines/*"))


def test_the_detectable_change_is_what_the_rule_finds_nine_times_in_ten():
    """Simulated at the last look alone, where each block is independent of the others."""
    limit, spread, alpha = Limit.of(METRICS["tpot_ms"]), 0.03, 0.05
    rng = np.random.default_rng(1)
    logs = rng.normal(math.log1p(detectable_change(spread, limit, alpha=alpha)), spread, (4000, LOOKS[-1]))
    t = (logs.mean(1) - math.log1p(limit.tolerate)) / (logs.std(1, ddof=1) / math.sqrt(LOOKS[-1]))
    looks = tuple(look for look in LOOKS if look >= FEWEST_TO_CHANGE)
    found = (t > quantile(nominal_levels(alpha, looks, late)[-1], LOOKS[-1] - 1)).mean()
    assert found == pytest.approx(0.9, abs=0.02)
