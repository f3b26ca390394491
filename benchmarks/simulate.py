"""False alarms and power of the verdicts, in simulation, beside the rules of other tools on the same figures.

A pull request is 25 tests of four metrics each, measured once against a stored baseline. Every verdict of ours comes
from `judge`, `prior_of` and the `Pairs` of ``llmperf ab``; the others' rules stand below. Prints Markdown tables::

    python benchmarks/simulate.py [--prs 800] [--scenario NAME] [--seed 2]
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit

from pytest_llmperf.ab.analysis import Pairs, TypicalVariance
from pytest_llmperf.metrics import METRICS, Limit
from pytest_llmperf.verdict.judge import judge
from pytest_llmperf.verdict.model import Cell, Outcome, Sample, Verdict
from pytest_llmperf.verdict.paired import ALPHA, LOOKS, veto
from pytest_llmperf.verdict.prior import Prior, prior_of

Array = NDArray[np.float64]
Truths = NDArray[np.bool_]

TESTS = 25
NAMES = ("tpot_ms", "ttft_ms", "e2e_ms", "decode_tokens_per_s")
CENTERS = (10.0, 80.0, 720.0, 100.0)
EFFECTS = (0.03, 0.05, 0.10)
RUNS_PER_SESSION = 2
FIVE_PERCENT = 0.05
ASV_FACTOR = 1.1

SLOW_TEST = 0
ALIKE = 0.5  # the share of its variance that a metric has in common with the others of its test
SPREAD_DF = 6  # variances differ from cell to cell like a scaled inverse chi-squared


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """How figures vary: standard deviations of ln(figure), unless said otherwise."""

    name: str
    run: float = 0.01
    session: float = 0.01
    sessions: int = 5
    host: float = 0.0
    """Of a session, common to all cells."""
    tail_df: float = math.inf
    """Degrees of freedom of a t distribution of runs and sessions."""
    spikes: float = 0.0
    """The share of processes that are slower, by 10 % on average (exponential)."""
    bimodal: float = 0.0
    """How much slower every second process is, at random."""
    drift: float = 0.0
    """By how much each process is slower than the one before it in the same session."""
    autocorrelation: float = 0.0
    """Between neighbouring blocks."""


SCENARIOS = (
    Scenario(name="run 1 %, session 0", session=0.0),
    Scenario(name="run 1 %, session 1 %"),
    Scenario(name="run 1 %, session 1 %, 10 sessions", sessions=10),
    Scenario(name="run 1 %, session 3 %", session=0.03),
    Scenario(name="run 1 %, session 6 %", session=0.06),
    Scenario(name="run 2 %, session 1 %", run=0.02),
    Scenario(name="run 3 %, session 3 %", run=0.03, session=0.03),
    Scenario(name="run 3 %, session 3 %, 10 sessions", run=0.03, session=0.03, sessions=10),
    Scenario(name="run 6 %, session 3 %", run=0.06, session=0.03),
    Scenario(name="tails t4", tail_df=4),
    Scenario(name="tails t3", tail_df=3),
    Scenario(name="spikes 5 %", spikes=0.05),
    Scenario(name="bimodal 12 %", bimodal=0.12),
    Scenario(name="drift 0.3 % a process", drift=0.003),
    Scenario(name="host 0.7 %", host=0.007),
    Scenario(name="host 3 %", host=0.03),
    Scenario(name="block autocorrelation 0.3", autocorrelation=0.3),
)


class Machine:
    """Draws ln(figure), more is worse, shaped (processes, tests, metrics)."""

    def __init__(self, scenario: Scenario, rng: np.random.Generator) -> None:
        self.scenario, self.rng = scenario, rng
        self.scale: Array = np.sqrt(SPREAD_DF / rng.chisquare(SPREAD_DF, (TESTS, len(NAMES))))

    def sessions(self, count: int) -> Array:
        """What sessions have in common."""
        host = self.rng.normal(0, self.scenario.host, (count, 1, 1))
        return np.asarray(host + self.scenario.session * self.scale * self._noise(count), np.float64)

    def processes(self, count: int) -> Array:
        """What fresh processes add to their sessions."""
        noise = self._autocorrelated(self._noise(count))
        return self.scenario.run * self.scale * noise + self._spikes(count) + self._modes(count)

    def blocks(self) -> tuple[Array, Array, Truths]:
        """Base, head and whether base went first, up to the last look: ABBA or BAAB by chance."""
        count = LOOKS[-1]
        base_first = np.repeat(self.rng.random(count // 2) < 1 / 2, 2) ^ (np.arange(count) % 2 == 1)
        base, head = (
            self.processes(count) + self.scenario.drift * (2 * np.arange(count) + second)[:, None, None]
            for second in (~base_first, base_first)
        )
        return base, head, base_first

    def _noise(self, count: int) -> Array:
        shared, own = (self._unit((count, TESTS, metrics)) for metrics in (1, len(NAMES)))
        return math.sqrt(ALIKE) * shared + math.sqrt(1 - ALIKE) * own

    def _unit(self, shape: tuple[int, ...]) -> Array:
        df = self.scenario.tail_df
        if math.isinf(df):
            return self.rng.normal(size=shape)
        unit: Array = self.rng.standard_t(df, shape) / math.sqrt(df / (df - 2))
        return unit

    def _autocorrelated(self, noise: Array) -> Array:
        rho = self.scenario.autocorrelation
        for before, now in pairwise(noise):
            now[:] = rho * before + math.sqrt(1 - rho**2) * now
        return noise

    def _spikes(self, count: int) -> Array:
        hit = self.rng.random((count, TESTS, 1)) < self.scenario.spikes
        return hit * self.rng.exponential(0.1, hit.shape)

    def _modes(self, count: int) -> Array:
        slow = self.rng.random((count, TESTS, 1)) < 1 / 2
        return np.where(slow, math.log1p(self.scenario.bimodal), 0.0)


@dataclass(frozen=True)
class CellId:
    """One test and one metric, by their numbers."""

    test: int
    metric: int


PRIMARY = [CellId(test, 0) for test in range(TESTS)]
ALL = [CellId(test, metric) for test in range(TESTS) for metric in range(len(NAMES))]


class PullRequest:
    """One pull request: its baseline, its run, and the blocks that it may ask for."""

    def __init__(self, machine: Machine) -> None:
        sessions = machine.scenario.sessions
        runs = sessions * RUNS_PER_SESSION
        self.window = np.repeat(machine.sessions(sessions), RUNS_PER_SESSION, axis=0) + machine.processes(runs)
        self.now = (machine.sessions(1) + machine.processes(1))[0]
        self.base, self.head, self.base_first = machine.blocks()
        self._screened: dict[tuple[CellId, int, float], Verdict] = {}

    def cell(self, at: CellId, effect: float = 0.0) -> Cell:
        """That cell, its test slower by ``effect``."""
        metric = METRICS[NAMES[at.metric]]
        return Cell(
            test=f"test_{at.test}",
            metric=metric,
            limit=Limit.of(metric),
            value=figure(at, self.now[at.test, at.metric] + math.log1p(effect)),
            window=[
                Sample(run_id=f"{i}", session_id=f"{i // RUNS_PER_SESSION}", value=figure(at, y))
                for i, y in enumerate(self.window[:, at.test, at.metric])
            ],
        )

    def screened(self, at: CellId, family_size: int, effect: float = 0.0) -> Verdict:
        """The verdict of stage S; several gates ask for the same one."""
        key = at, family_size, effect
        if key not in self._screened:
            cell = self.cell(at, effect)
            self._screened[key] = judge(cell, family_size=family_size, prior=self.priors[at.metric])
        return self._screened[key]

    def pairs(self, at: CellId, effect: float = 0.0) -> Pairs:
        """That cell's figures in all blocks."""
        base, head = (
            [figure(at, y) for y in arm[:, at.test, at.metric] + more]
            for arm, more in ((self.base, 0.0), (self.head, math.log1p(effect)))
        )
        metric = NAMES[at.metric]
        return Pairs(
            (f"test_{at.test}", "", metric), Limit.of(METRICS[metric]), list(range(1, len(base) + 1)), [*base], [*head],
            [bool(first) for first in self.base_first], [""] * len(base),
        )  # fmt: skip

    def confirmed(self, cells: Sequence[CellId], slower: Sequence[CellId] = (), effect: float = 0.0) -> list[Verdict]:
        """The verdicts of stage P on these cells together; none regressed where a side beside itself did."""
        alpha = ALPHA / max(1, len(cells))
        measured = [self.pairs(at, effect if at in slower else 0.0) for at in cells]
        now = list(measured)
        verdicts: list[Verdict | None] = [None] * len(cells)
        for look in LOOKS:
            waiting = [i for i, verdict in enumerate(verdicts) if verdict is None or not verdict.outcome.decided]
            for i in waiting:
                now[i] = measured[i].first(look)
            typical = TypicalVariance(now)(look)
            for i in waiting:
                verdicts[i] = now[i].verdict_now(alpha, final=False, typical=typical)
        typical = TypicalVariance(now)(LOOKS[-1])
        tripped = any(pairs.null_trips(alpha, typical=typical) for pairs in now)
        found = [verdict for verdict in verdicts if verdict]
        return [veto(verdict, "null control") if tripped else verdict for verdict in found]

    @cached_property
    def priors(self) -> list[Prior]:
        """Of each metric, learned from the baselines of all tests as a run does."""
        return [prior_of(self.cell(at) for at in ALL if at.metric == metric) for metric in range(len(NAMES))]


def figure(at: CellId, y: float) -> float:
    """The figure in the metric's unit."""
    return CENTERS[at.metric] * math.exp(METRICS[NAMES[at.metric]].better.sign * y)


@dataclass
class Tally:
    """What one gate did: false alarms and paired sessions of clean pull requests, regressions found of each effect."""

    prs: int = 0
    alarms: int = 0
    paired: int = 0
    blocks: int = 0
    found: Counter[float] = field(default_factory=Counter)

    @property
    def alarm_rate(self) -> str:
        """False alarms per clean pull request with their 95 % bound."""
        return f"{_share(self.alarms, self.prs)} (≤ {100 * upper_bound(self.alarms, self.prs):.2f})"

    @property
    def row(self) -> list[str]:
        """All of it, in words."""
        power = [_with_interval(self.found[effect], self.prs) for effect in EFFECTS]
        return [self.alarm_rate, *power, _share(self.paired, self.prs), f"{self.blocks / max(self.paired, 1):.1f}"]


def upper_bound(successes: int, trials: int, level: float = 0.95) -> float:
    """The one-sided upper bound of a share: Clopper and Pearson 1934."""
    return float(betaincinv(successes + 1, trials - successes, level)) if successes < trials else 1.0


def lower_bound(successes: int, trials: int, level: float = 0.95) -> float:
    """The one-sided lower bound of a share."""
    return 1 - upper_bound(trials - successes, trials, level)


def _share(successes: int, trials: int) -> str:
    return f"{100 * successes / trials:.1f}"


def _with_interval(successes: int, trials: int) -> str:
    low, high = lower_bound(successes, trials, 0.975), upper_bound(successes, trials, 0.975)
    return f"{100 * successes / trials:.0f} ({100 * low:.0f} to {100 * high:.0f})"


def screen_alone(pr: PullRequest, cells: Sequence[CellId], tally: Tally) -> None:
    """Stage S fails the run by itself."""

    def regressed(at: CellId, effect: float = 0.0) -> bool:
        return pr.screened(at, len(cells), effect).outcome is Outcome.REGRESSED

    tally.alarms += any(regressed(at) for at in cells)
    for effect in EFFECTS:
        tally.found[effect] += any(regressed(at, effect) for at in _slow(cells))


def two_stages(pr: PullRequest, cells: Sequence[CellId], tally: Tally, *, undecided: bool = False) -> None:
    """Stage S sends what it flags, and what it cannot decide if ``undecided``, to stage P."""

    def sent(at: CellId, effect: float = 0.0) -> bool:
        verdict = pr.screened(at, len(cells), effect)
        return verdict.flagged or (undecided and not verdict.outcome.decided)

    clean = [at for at in cells if sent(at)]
    verdicts = pr.confirmed(clean)
    tally.alarms += any(verdict.outcome is Outcome.REGRESSED for verdict in verdicts)
    tally.paired += bool(verdicts)
    tally.blocks += max((verdict.blocks for verdict in verdicts), default=0)
    others = [at for at in clean if at.test != SLOW_TEST]
    for effect in EFFECTS:
        slow = [at for at in _slow(cells) if sent(at, effect)]
        verdicts = pr.confirmed([*slow, *others], slow, effect) if slow else []
        tally.found[effect] += any(verdict.outcome is Outcome.REGRESSED for verdict in verdicts[: len(slow)])


def _slow(cells: Iterable[CellId]) -> list[CellId]:
    return [at for at in cells if at.test == SLOW_TEST]


def percent_of_last(window: Array, now: Array) -> Truths:
    """pytest-benchmark 5.3, ``--benchmark-compare-fail=mean:5%`` against the last saved run."""
    return np.asarray(now / window[-1] - 1 > FIVE_PERCENT)


def percent_of_mean(window: Array, now: Array) -> Truths:
    """The same against the mean of all runs of the baseline."""
    return np.asarray(now / window.mean(axis=0) - 1 > FIVE_PERCENT)


def asv_factor(window: Array, now: Array) -> Truths:
    """What ``asv continuous`` 0.6.6 does: with one figure a side no test is possible and the factor decides."""
    return np.asarray(now / window[-1] > ASV_FACTOR)


def bencher_t(window: Array, now: Array) -> Truths:
    """The t-test threshold of bencher: above the one-sided prediction interval of 0.99 of the history."""
    runs = len(window)
    bound = stdtrit(runs - 1, 0.99) * window.std(axis=0, ddof=1) * math.sqrt(1 + 1 / runs)
    return np.asarray(now > window.mean(axis=0) + bound)


def one_value(pr: PullRequest, cells: Sequence[CellId], tally: Tally, rule: Callable[[Array, Array], Truths]) -> None:
    """One value against stored ones, by a rule on figures of which more is worse."""
    at = [cell.test for cell in cells], [cell.metric for cell in cells]
    slow = np.array([cell.test == SLOW_TEST for cell in cells])
    window, now = np.exp(pr.window[:, at[0], at[1]]), np.exp(pr.now[at])
    tally.alarms += bool(rule(window, now).any())
    for effect in EFFECTS:
        tally.found[effect] += bool(rule(window, now * (1 + effect))[slow].any())


Gate = Callable[[PullRequest, Sequence[CellId], Tally], None]

FAMILIES = {25: PRIMARY, 100: ALL}
"""The cells that gate: one metric a test, or all four."""

TWO_STAGES: dict[str, Gate] = {
    "screen → paired": two_stages,
    "screen → paired, undecided cells too": partial(two_stages, undecided=True),
}
ONE_VALUE: dict[str, Gate] = {
    "screen alone": screen_alone,
    "5 % of last run": partial(one_value, rule=percent_of_last),
    "5 % of mean": partial(one_value, rule=percent_of_mean),
    "asv": partial(one_value, rule=asv_factor),
    "bencher t .99": partial(one_value, rule=bencher_t),
}

Tallies = dict[tuple[str, int], Tally]


def simulate(scenario: Scenario, prs: int, seed: int) -> Tallies:
    """All gates on the same pull requests of one scenario."""
    rng = np.random.default_rng([seed, SCENARIOS.index(scenario)])
    tallies = {(gate, family): Tally(prs=prs) for gate in TWO_STAGES | ONE_VALUE for family in FAMILIES}
    for _ in range(prs):
        pr = PullRequest(Machine(scenario, rng))
        for (gate, family), tally in tallies.items():
            (TWO_STAGES | ONE_VALUE)[gate](pr, FAMILIES[family], tally)
    return tallies


def print_two_stages(results: dict[str, Tallies], gate: str, family: int) -> None:
    """A table of one gate, a line a scenario."""
    columns = ["scenario", "false alarms, % of clean PRs", "found of 3 %", "of 5 %", "of 10 %"]
    print(f"\n{gate}, {family} cells gate:\n")
    _print_table([*columns, "clean PRs with blocks, %", "their blocks"], {
        scenario: tallies[gate, family].row for scenario, tallies in results.items()
    })  # fmt: skip


def print_one_value(results: dict[str, Tallies]) -> None:
    """A table of false alarms of 25 and of 100 cells and of what is found of 5 %, a line a scenario."""
    print("\nFalse alarms per clean PR where 25 cells gate, where 100 do, and what 25 find of 5 %, in %:\n")
    _print_table(["scenario", *ONE_VALUE], {
        scenario: [_three(tallies[gate, 25], tallies[gate, 100]) for gate in ONE_VALUE]
        for scenario, tallies in results.items()
    })  # fmt: skip


def _three(few: Tally, many: Tally) -> str:
    shares = (few.alarms, many.alarms, few.found[FIVE_PERCENT])
    return " / ".join(f"{100 * share / few.prs:.1f}" for share in shares)


def _print_table(columns: Sequence[str], rows: dict[str, list[str]]) -> None:
    lines = [columns, ["---"] * len(columns), *([name, *row] for name, row in rows.items())]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines), flush=True)


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prs", type=int, default=800, help="pull requests a scenario")
    parser.add_argument("--scenario", choices=[scenario.name for scenario in SCENARIOS], help="only this one")
    parser.add_argument("--seed", type=int, default=2)
    arguments = parser.parse_args()
    start = time.perf_counter()
    results = {
        scenario.name: simulate(scenario, arguments.prs, arguments.seed)
        for scenario in SCENARIOS
        if arguments.scenario in {None, scenario.name}
    }
    for gate in TWO_STAGES:
        for family in FAMILIES:
            print_two_stages(results, gate, family)
    print_one_value(results)
    print(f"\n{arguments.prs} pull requests a scenario, seed {arguments.seed}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
