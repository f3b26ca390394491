"""Commands that compare on this machine: ``gate``, ``ab``, ``bisect`` and ``selftest``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmperf.errors import UsageError

if TYPE_CHECKING:
    from pytest_llmperf.ab.compare import PairedComparison
    from pytest_llmperf.ab.side import Recipe
    from pytest_llmperf.metrics import Metric

MOST_BLOCKS = 48
"""Default of a comparison: the last look. It is repeated here, because importing it would import scipy."""

MOST_BLOCKS_OF_A_SEARCH = 96
"""Default of a bisection: those of GOOD beside BAD, and of all commits that are asked."""


def add_commands(commands: Any) -> None:
    """Declare the commands."""
    _add_gate(commands)
    _add_ab(commands)
    _add_bisect(commands)
    _add_selftest(commands)


def _add_ab(commands: Any) -> None:
    ab = commands.add_parser(
        "ab",
        help="compare two git revisions on this machine, interleaved, until every test is decided",
        usage="llmperf ab BASE [HEAD] [options] [-- pytest arguments]",
    )
    ab.add_argument("base", metavar="BASE", help="revision to compare with")
    ab.add_argument("head", nargs="?", metavar="HEAD", help="revision to judge (default: the working tree as it is)")
    _add_comparing(ab)
    for side in ("base", "head"):
        ab.add_argument(f"--{side}-with", action="append", default=[], metavar="REQUIREMENT",
                        help=f"install this on {side}, such as 'transformers==5.17'; may be repeated")  # fmt: skip
    ab.set_defaults(run=_ab, passes_on="after --")


def _add_gate(commands: Any) -> None:
    gate = commands.add_parser(
        "gate",
        help="screen against the stored baseline, then compare with the merge base what that leaves open",
        usage="llmperf gate [BRANCH] [options] [-- pytest arguments]",
    )
    gate.add_argument("base", nargs="?", metavar="BRANCH", help="target branch of the change (default: as the "
                      "CI system says, else origin/HEAD, main or master)")  # fmt: skip
    gate.add_argument("--fail-on", default="", metavar="OUTCOMES", help="outcomes that fail as well, comma-separated")
    gate.add_argument("--strict", action="store_true", help="fail on every undecided cell")
    _add_comparing(gate)
    gate.set_defaults(run=_gate, passes_on="after --", base_with=[], head_with=[])


def _add_bisect(commands: Any) -> None:
    bisect = commands.add_parser(
        "bisect",
        help="find the commit that made a perf test slower or bigger",
        usage=(
            "llmperf bisect GOOD BAD [options] [-- pytest arguments]\n"
            "       llmperf bisect --package NAME GOOD BAD [COMMIT] [options] [-- pytest arguments]"
        ),
        description=(
            "Search the commits from GOOD to BAD, along the first parents. Counted figures take one process a commit. "
            "Times take blocks of a commit beside GOOD, and a search that keeps a belief in each commit. Exit code: 0 "
            "if one commit was found; else 1. With --package, search the releases of a package that pip lists."
        ),
    )
    bisect.add_argument("good", metavar="GOOD", help="revision that is good, an ancestor of BAD; or version")
    bisect.add_argument("bad", metavar="BAD", help="revision or version that is slower or bigger")
    bisect.add_argument("commit", nargs="?", metavar="COMMIT",
                        help="revision that runs with each release (default: HEAD)")  # fmt: skip
    bisect.add_argument("--package", metavar="NAME", help="search its releases instead of the commits")
    bisect.add_argument("--metric", metavar="NAME", help="metric to search (default: the gating one that got worse)")
    bisect.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    _add_effort(bisect, most_blocks=MOST_BLOCKS_OF_A_SEARCH)
    _add_building(bisect)
    bisect.set_defaults(run=_bisect, passes_on="after --", device=None, python_base=None, python_head=None,
                        base_with=[], head_with=[])  # fmt: skip


def _add_comparing(ab: argparse.ArgumentParser) -> None:
    _add_effort(ab, most_blocks=MOST_BLOCKS)
    _add_building(ab)
    ab.add_argument("--device", metavar="DEVICES",
                    help="device, or several that measure blocks side by side: cuda:0,cuda:1; on a CPU sets of cores, "
                    "cpu:0-3,cpu:4-7")  # fmt: skip
    ab.add_argument("--python-base", metavar="PYTHON", help="interpreter of an environment for base")
    ab.add_argument("--python-head", metavar="PYTHON", help="interpreter of an environment for head")
    ab.add_argument("--verdicts", type=Path, metavar="FILE", help="write every verdict with its evidence as JSON")


def _add_effort(comparing: argparse.ArgumentParser, *, most_blocks: int) -> None:
    comparing.add_argument("--budget", metavar="TIME", help="stop measuring after this long: 20m, 90s, 1.5h")
    comparing.add_argument("--blocks", type=int, default=most_blocks, metavar="N",
                           help=f"most blocks to measure (default: {most_blocks})")  # fmt: skip


def _add_building(comparing: argparse.ArgumentParser) -> None:
    comparing.add_argument("--prepare", metavar="CMD",
                           help="build each checkout with this command instead of installing it")  # fmt: skip
    comparing.add_argument("--same-environment", action="store_true",
                           help="run both sides with what is installed here, whatever their dependencies")  # fmt: skip
    comparing.add_argument("--restart", action="store_true", help="delete the blocks of an interrupted comparison")
    comparing.add_argument("--no-explain", action="store_true", help="do not profile regressions")


def _ab(options: argparse.Namespace, rest: list[str]) -> int:
    from pytest_llmperf.cli.ab_command import run_ab

    return run_ab(_comparison(options, rest, base=options.base, head=options.head), options)


def _bisect(options: argparse.Namespace, rest: list[str]) -> int:
    from pytest_llmperf.ab.release import PackageRange
    from pytest_llmperf.cli.bisect_command import WantedBisection, run_bisect

    if options.commit and not options.package:
        raise UsageError(f"llmperf bisect: unexpected {options.commit!r}; only --package takes a third argument")
    commit = options.commit or "HEAD"
    good, bad = (commit, commit) if options.package else (options.good, options.bad)
    comparison = _comparison(options, rest, base=good, head=bad)
    metric = _searchable(options.metric) if options.metric else None
    releases = None
    if options.package:
        releases = PackageRange(package=options.package, good=options.good, bad=options.bad)
    return run_bisect(WantedBisection(comparison=comparison, releases=releases, metric=metric, json=options.json))


def _searchable(name: str) -> Metric:
    from pytest_llmperf.metrics import Kind, find_metric

    metric = find_metric(name)
    if metric.kind not in (Kind.TIMED, Kind.EXACT):
        raise UsageError(f"--metric {metric.name}: it is {metric.kind}: expected a timed or an exact metric")
    return metric


def _gate(options: argparse.Namespace, rest: list[str]) -> int:
    from pytest_llmperf.cli.gate_command import run_gate

    return run_gate(_comparison(options, rest, base=options.base or "", head=None), options)


def _comparison(options: argparse.Namespace, rest: list[str], *, base: str, head: str | None) -> PairedComparison:
    from pytest_llmperf.ab.compare import PairedComparison
    from pytest_llmperf.ab.lanes import parse_lanes

    _require_blocks(options.blocks)
    return PairedComparison(
        lanes=parse_lanes(options.device, rest),
        base=base,
        head=head,
        arguments=rest,
        base_recipe=_recipe("base", options.python_base, options.prepare, options.base_with),
        head_recipe=_recipe("head", options.python_head, options.prepare, options.head_with),
        budget_s=_seconds(options.budget) if options.budget else None,
        most_blocks=options.blocks,
        restart=options.restart,
        same_environment=options.same_environment,
        explain=not options.no_explain,
    )


def _recipe(side: str, python: str | None, command: str | None, texts: Sequence[str]) -> Recipe:
    from pytest_llmperf.ab.requested import parse_requested
    from pytest_llmperf.ab.side import Recipe

    option = f"--{side}-with"
    if python and texts:
        raise UsageError(
            f"{option} and --python-{side}: nothing is installed into an environment that you provide; install "
            f"{texts[0]!r} there and leave out {option}, or leave out --python-{side}"
        )
    return Recipe(python=python, command=command, requirements=parse_requested(texts, option=option))


def _add_selftest(commands: Any) -> None:
    selftest = commands.add_parser(
        "selftest",
        help="measure false alarms and detected slowdowns of your tests on this machine",
        usage="llmperf selftest [options] [-- pytest arguments]",
        description=(
            "Compare the working tree with itself, as it is (A/A) and with a slowdown injected into one side, in fresh "
            "processes as 'llmperf ab' does. Exit code: 0 if there was no false alarm and the largest slowdown was "
            "found in every decision; else 1."
        ),
    )
    selftest.add_argument("--pairs", type=int, default=5, metavar="N", help="comparisons of each size (default: 5)")
    selftest.add_argument("--sizes", default="5%,10%,15%", metavar="SIZES", help="slowdowns (default: 5%%,10%%,15%%)")
    selftest.add_argument("--kind", choices=("sleep", "work"), default="sleep",
                          help="what slows down: a wait (default) or extra matrix products")  # fmt: skip
    selftest.add_argument("--budget", default="30m", metavar="TIME", help="stop after this long (default: 30m)")
    selftest.add_argument("--blocks", type=int, default=MOST_BLOCKS, metavar="N",
                          help=f"most blocks of one (default: {MOST_BLOCKS})")  # fmt: skip
    selftest.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    selftest.set_defaults(run=_selftest, passes_on="after --")


def _selftest(options: argparse.Namespace, rest: list[str]) -> int:
    from pytest_llmperf.ab.selftest import Selftest, parse_sizes
    from pytest_llmperf.cli.selftest_command import run_selftest

    _require_blocks(options.blocks)
    if options.pairs < 1:
        raise UsageError(f"--pairs {options.pairs}: expected a whole number of at least 1")
    wanted = Selftest(
        arguments=rest,
        sizes=parse_sizes(options.sizes),
        kind=options.kind,
        pairs=options.pairs,
        budget_s=_seconds(options.budget),
        most_blocks=options.blocks,
    )
    return run_selftest(wanted, options)


def _require_blocks(blocks: int) -> None:
    from pytest_llmperf.verdict.paired import FEWEST_TO_CHANGE

    if blocks < FEWEST_TO_CHANGE:
        raise UsageError(f"--blocks {blocks}: expected at least {FEWEST_TO_CHANGE}: fewer show no change")


def _seconds(budget: str) -> float:
    """Parse seconds from ``20m``, ``90s``, ``1.5h`` or a plain number of seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", budget.strip())
    if not found or float(found[1]) <= 0:
        raise UsageError(f"--budget {budget!r}: expected a time such as 20m, 90s or 1.5h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]
