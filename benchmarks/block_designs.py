"""What a null control costs: designs of blocks beside each other, at the same error, in simulation.

Designs with a null process (base once more) in every block, in every second one, or in those of the first look only;
and mirrored pairs, in which each side is its own control. With a null process, the variance of a block is that of the
blocks, but at least that of base beside base. Mirrored pairs pool the variance instead, alone or with the other cells.
The machine is that of ``simulate.py``: up to 25 tests, one cell each. This script compares designs; ``simulate.py``
runs the real code. Time is that of clean comparisons, by what ``process_cost.py`` measured: seconds of a process, and
of each of its cells in the first block and in later ones that measure only times. Prints Markdown::

    python benchmarks/block_designs.py [--prs 200] [--cells 25] [--seconds PROCESS FIRST LATER] [--scenario NAME ...]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr
from simulate import SCENARIOS, Machine, Scenario

from pytest_llmperf.stats.alpha_spending import even, late, nominal_levels
from pytest_llmperf.stats.moderated_variance import typical_variance
from pytest_llmperf.stats.student_t import SD_FLOOR
from pytest_llmperf.stats.trimmed_mean import Location, spread_around_zero
from pytest_llmperf.verdict.paired import ALPHA, BETA, FEWEST_TO_CHANGE
from pytest_llmperf.verdict.paired_guards import doubt

Array = NDArray[np.float64]

MARGIN, CATCH = math.log1p(0.02), math.log1p(0.05)
OLD_LOOKS, NEW_LOOKS = (4, 6, 8, 12, 16, 24), (2, 4, 6, 8, 12, 16, 24, 36, 48)


@dataclass(frozen=True)
class Design:
    """How a comparison is measured and how its variance is estimated."""

    name: str
    looks: tuple[int, ...]
    has_null: Callable[[int], bool]
    """Whether the block of this number, from 0, has a null process."""
    pools: bool = False
    """Whether the mirrored pairs add degrees of freedom; otherwise base beside base is a lower bound."""
    shares: bool = False
    """Whether the cells share a typical variance."""
    fewest_to_change: int = 0
    times_only: bool = False
    """Whether later blocks measure only times, with the requests that pay."""

    @property
    def change_looks(self) -> tuple[int, ...]:
        """Looks at which a change may be shown."""
        return tuple(look for look in self.looks if look >= self.fewest_to_change)


DESIGNS = (
    Design("null in each block", OLD_LOOKS, lambda _: True),
    Design("null in each second block", OLD_LOOKS, lambda number: number % 2 == 0),
    Design("null up to the first look", OLD_LOOKS, lambda number: number < OLD_LOOKS[0]),
    Design("mirrored pairs", OLD_LOOKS, lambda _: False),
    Design("mirrored pairs, pooled", NEW_LOOKS, lambda _: False, pools=True, fewest_to_change=FEWEST_TO_CHANGE),
    Design("mirrored pairs, pooled, shared variance", NEW_LOOKS, lambda _: False, pools=True, shares=True,
           fewest_to_change=FEWEST_TO_CHANGE),
    Design("the same, later blocks measure only times", NEW_LOOKS, lambda _: False, pools=True, shares=True,
           fewest_to_change=FEWEST_TO_CHANGE, times_only=True),
)  # fmt: skip


@dataclass(frozen=True)
class Seconds:
    """What a process takes by itself, and what a cell of it adds."""

    process: float
    first: float
    later: float
    """In a block that measures only times."""

    def of(self, design: Design, block: int, cells: int) -> float:
        """Seconds of a process of this block, numbered from 0."""
        return self.process + cells * (self.later if design.times_only and block else self.first)


class Series:
    """The blocks of one comparison: ln(figure) of each cell, more being worse."""

    def __init__(self, design: Design, machine: Machine, cells: int) -> None:
        blocks = design.looks[-1]
        chance = np.repeat(machine.rng.random(blocks // 2) < 1 / 2, 2)
        self.base_first = chance ^ (np.arange(blocks) % 2 == 1)
        self.has_null = np.array([design.has_null(number) for number in range(blocks)])
        self.processes = 2 + self.has_null
        starts = np.cumsum(self.processes) - self.processes
        last = np.where(self.base_first, self.processes - 1, 0)
        first = np.where(self.base_first, 0, self.processes - 1)
        places = {"base": np.where(self.has_null, 1, first), "null": first, "head": last}
        drift = machine.scenario.drift
        self.base, self.null, self.head = (
            machine.processes(blocks)[:, :cells, 0] + drift * (starts + places[arm])[:, None]
            for arm in ("base", "null", "head")
        )

    def differences(self, blocks: int, cell: int, effect: float) -> list[float]:
        """Head less base, which is the mean of both base processes where there are two."""
        null = np.where(self.has_null, self.null[:, cell], self.base[:, cell])
        found = self.head[:, cell] + effect - (self.base[:, cell] + null) / 2
        return [float(one) for one in found[:blocks]]

    def controls(self, blocks: int, cell: int) -> list[float]:
        """Each process beside another of its side: the null ones, or those of mirrored blocks."""
        nulls = [float(self.null[i, cell] - self.base[i, cell]) for i in range(blocks) if self.has_null[i]]
        pairs = [i for i in range(0, blocks - 1, 2) if not (self.has_null[i] and self.has_null[i + 1])]
        sides = [float(side[i, cell] - side[i + 1, cell]) for i in pairs for side in (self.base, self.head)]
        return [*nulls, *sides]

    def products(self, blocks: int, cell: int) -> list[float]:
        """Base + head of a block less those of its mirror, scaled to the variance of a block's difference."""
        both = (self.base[:, cell] + self.head[:, cell]) / math.sqrt(2)
        return [float(both[i] - both[i + 1]) for i in range(0, blocks - 1, 2)]


@dataclass
class Result:
    """Outcomes of all cells of one comparison, and what they cost."""

    outcomes: list[str]
    processes: float
    """A cell."""
    blocks: int
    seconds: float
    """Of all processes together."""


def compare(design: Design, series: Series, effect: float, seconds: Seconds) -> Result:
    """Measure until every cell is decided; the first cell's head is slower by ``effect``."""
    cells = series.base.shape[1]
    outcomes, at, spent, before = [""] * cells, [design.looks[-1]] * cells, 0.0, 0
    time = 0.0
    for look in design.looks:
        waiting = [cell for cell in range(cells) if not outcomes[cell]]
        if not waiting:
            break
        spent += float(series.processes[before:look].sum()) * len(waiting)
        time += sum(series.processes[one] * seconds.of(design, one, len(waiting)) for one in range(before, look))
        before = look
        variances = {cell: _variance(design, series, look, cell, effect * (cell == 0)) for cell in waiting}
        shared = typical_variance(variances.values()) if design.shares else None
        for cell in waiting:
            variance, df = variances[cell]
            if shared:
                variance, df = (variance * df + shared.value * shared.df) / (df + shared.df), df + shared.df
            outcomes[cell] = _outcome(design, series, look, cell, effect * (cell == 0), (variance, df), cells)
            at[cell] = look
    return Result(outcomes, spent / cells, max(at), time)


def _variance(design: Design, series: Series, look: int, cell: int, effect: float) -> tuple[float, float]:
    found = Location.of(series.differences(look, cell, effect))
    own = look * found.se**2
    if not design.pools:
        return max(own, 2 * (spread_around_zero(series.controls(look, cell)) / math.sqrt(2)) ** 2), found.df
    products = series.products(look, cell)
    df = found.df + len(products)
    return (own * found.df + spread_around_zero(products) ** 2 * len(products)) / df, df


def _outcome(  # noqa: PLR0913, PLR0917  # a look at one cell
    design: Design, series: Series, look: int, cell: int, effect: float, variance: tuple[float, float], cells: int
) -> str:
    differences = series.differences(look, cell, effect)
    mean, df = Location.of(differences).mean, variance[1]
    se = max(math.sqrt(variance[0]), SD_FLOOR) / math.sqrt(look)
    first = [bool(one) for one in series.base_first[:look]]
    if look in design.change_looks:
        level = nominal_levels(ALPHA / cells, design.change_looks, late)[design.change_looks.index(look)]
        for sign, word in ((1, "regressed"), (-1, "improved")):
            if stdtr(df, -(sign * mean - MARGIN) / se) <= level:
                return "" if doubt([sign * one for one in differences], first, MARGIN) else word
    beta = nominal_levels(BETA, design.looks, even)[design.looks.index(look)]
    return "unchanged" if stdtr(df, -(CATCH - mean) / se) <= beta else ""


def main() -> None:
    """Print a table for each scenario."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prs", type=int, default=200, help="clean comparisons, and slower ones")
    parser.add_argument("--cells", type=int, default=25)
    parser.add_argument("--seconds", type=float, nargs=3, default=(10.5, 39.8, 9.8))
    parser.add_argument("--scenario", nargs="*", default=["run 1 %, session 0", "run 2 %, session 1 %", "bimodal 12 %"])
    given = parser.parse_args()
    for name in given.scenario:
        scenario = next(scenario for scenario in SCENARIOS if scenario.name == name)
        columns = "design | false alarms, % of clean | found of 5 %, % | processes a cell | blocks | minutes"
        print(f"\n{name}, {given.cells} cells:\n\n| {columns} |\n|---|---|---|---|---|---|")
        for design in DESIGNS:
            print(_row(design, scenario, given.prs, given.cells, Seconds(*given.seconds)), flush=True)


def _row(design: Design, scenario: Scenario, prs: int, cells: int, seconds: Seconds) -> str:
    rng = np.random.default_rng([2, SCENARIOS.index(scenario)])
    clean, slower = list[Result](), list[Result]()
    for _ in range(prs):
        series = Series(design, Machine(scenario, rng), cells)
        clean.append(compare(design, series, 0.0, seconds))
        slower.append(compare(design, series, CATCH, seconds))
    figures = (
        _share(["regressed" in result.outcomes for result in clean]),
        _share([result.outcomes[0] == "regressed" for result in slower]),
        f"{np.mean([result.processes for result in clean]):.1f}",
        f"{np.mean([result.blocks for result in clean]):.1f}",
        f"{np.mean([result.seconds for result in clean]) / 60:.0f}",
    )
    return f"| {design.name} | {' | '.join(figures)} |"


def _share(found: Sequence[bool]) -> str:
    return f"{100 * sum(found) / len(found):.1f}"


if __name__ == "__main__":
    main()
