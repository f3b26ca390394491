"""``llmperf bisect``: how often it finds the right commit, and what that takes.

``simulate`` plays timed searches: blocks of base and head, whose times scatter. It prints the search of
``llmperf bisect`` beside ordinary binary searches that spend a fixed number of blocks on each commit. ``counted`` and
``timed`` run the command in repositories of their own, in which a random commit adds an operator to each forward, or
makes it longer by real work. Each search is kept as a line of ``--results``, and the same command goes on where it was
stopped::

    python benchmarks/bisection.py simulate [--searches 20] [--commits 64] [--step 5]
    python benchmarks/bisection.py counted [--searches 20] [--commits 64] [--results FILE]
    python benchmarks/bisection.py timed [--searches 3] [--commits 64] [--step 15] [--results FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from pytest_llmperf.metrics import PRIMARY, Limit
from pytest_llmperf.stats.binomial import rate_interval
from pytest_llmperf.stats.noisy_bisection import NoisyBisection
from pytest_llmperf.verdict.model import Outcome
from pytest_llmperf.verdict.paired import LOOKS, Block, judge_paired

MOST_BLOCKS = 96
FIXED = (1, 2, 4, 8)
SCENARIOS = ((0.01, 0.0), (0.02, 0.0), (0.03, 0.0), (0.01, 0.05))
"""Standard deviation of ln(time) of a process, and the share of processes that are slower, by 10 % on average."""

TEST = """
import pytest


@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_decode(llm, llmperf):
    llmperf.generate(llm, batch_size=1, input_tokens=16, output_tokens=24, execution="loop")
"""
ONE_MORE_OPERATOR = """
from pathlib import Path

import pytest
import torch

EXTRA = int((Path(__file__).parent / "extra").read_text())


def add_operators(*_):
    for _ in range(EXTRA):
        torch.ones(1).sin()


@pytest.fixture(autouse=True)
def _more_work(request):
    if "llm" in request.fixturenames:
        request.getfixturevalue("llm").model.register_forward_hook(add_operators)
"""
PYTEST = ("--device=cpu", "--llmperf-model=synthetic:tiny", "--llmperf-requests=10")


def main() -> None:
    """Run one of the three proofs."""
    wanted = _arguments()
    if wanted.proof == "simulate":
        _simulate(wanted)
    else:
        _real(wanted)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proof", choices=("simulate", "counted", "timed"))
    parser.add_argument("--searches", type=int, default=20)
    parser.add_argument("--commits", type=int, default=64)
    parser.add_argument("--step", type=float, default=5.0, help="slowdown of the commit, in per cent")
    parser.add_argument("--ends", type=int, default=0, help="blocks of GOOD and BAD, whatever they show")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("bisection.jsonl"))
    return parser.parse_args()


@dataclass(frozen=True)
class Machine:
    """Plays blocks whose times scatter around 10 ms."""

    noise: random.Random
    spread: float
    spikes: float
    ends: int = 0
    """Blocks of GOOD and BAD; 0 for as many as show the step."""

    def block(self, step: float, number: int = 0) -> Block:
        """A block whose head is slower by ``step``, in ln(time); numbers begin at 0."""
        base, head = self._process(), self._process()
        return Block(base=10 * math.exp(base), head=10 * math.exp(head + step), base_first=number % 4 in {0, 3},
                     pair=number // 2)  # fmt: skip

    def difference(self, step: float) -> float:
        """Its difference in ln(time)."""
        block = self.block(step)
        return math.log(block.head / block.base)

    def _process(self) -> float:
        spike = self.noise.expovariate(10) if self.noise.random() < self.spikes else 0.0
        return self.noise.gauss(0.0, self.spread) + spike


@dataclass(frozen=True)
class Played:
    """One search: what it found, and the blocks that it took after those of GOOD and BAD."""

    found: int | None
    blocks: int
    ends: int
    asked: int


def _simulate(wanted: argparse.Namespace) -> None:
    step = math.log1p(wanted.step / 100)
    print(f"{wanted.commits} commits, a step of {wanted.step:g} % at a random one, {wanted.searches} searches\n")
    print("| spread of a process | search | right commit | wrong | undecided | blocks | commits asked |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for spread, spikes in SCENARIOS:
        name = f"{spread:.0%}" + (f", {spikes:.0%} spikes" if spikes else "")
        ways: dict[str, Callable[..., Played]] = {"belief": _believing}
        ways |= {f"binary, {fixed} a commit": partial(_binary, fixed=fixed) for fixed in FIXED}
        for way, search in ways.items():
            chance = random.Random(wanted.seed)
            culprits = [chance.randrange(wanted.commits) for _ in range(wanted.searches)]
            machine = Machine(random.Random(wanted.seed), spread, spikes, wanted.ends)
            print(
                _row(name, way, culprits, [search(machine, culprit, wanted.commits, step) for culprit in culprits]),
                flush=True,
            )


def _row(name: str, way: str, culprits: Sequence[int], played: Sequence[Played]) -> str:
    right = sum(one.found == culprit for one, culprit in zip(played, culprits, strict=True))
    undecided = sum(one.found is None for one in played)
    low, high = rate_interval(right, len(played))
    blocks = f"{fmean(one.ends for one in played):.1f} + {fmean(one.blocks for one in played):.1f}"
    share = f"{right} of {len(played)} ({low:.0%} to {high:.0%})"
    asked = f"{fmean(one.asked for one in played):.1f}"
    return f"| {name} | {way} | {share} | {len(played) - right - undecided} | {undecided} | {blocks} | {asked} |"


def _believing(machine: Machine, culprit: int, commits: int, step: float) -> Played:
    """The search of ``llmperf bisect``: GOOD and BAD by looks, and then by belief."""
    ends = _ends(machine, step)
    if ends is None:
        return Played(None, 0, LOOKS[-1], 0)
    search = NoisyBisection(commits)
    search.add(commits - 1, [math.log(block.head / block.base) for block in ends])
    blocks, asked = 0, set[int]()
    while search.found is None and blocks + len(ends) < MOST_BLOCKS:
        position = search.next
        assert position is not None  # noqa: S101  # no commit is skipped
        search.add(position, [machine.difference(step * (position >= culprit))])
        asked.add(position)
        blocks += 1
    return Played(search.found[-1] if search.found else None, blocks, len(ends), len(asked))


def _binary(machine: Machine, culprit: int, commits: int, step: float, fixed: int) -> Played:  # a case
    """An ordinary binary search, which calls a commit bad if its mean is nearer to BAD's than to GOOD's."""
    ends = _ends(machine, step)
    if ends is None:
        return Played(None, 0, LOOKS[-1], 0)
    half = fmean(math.log(block.head / block.base) for block in ends) / 2
    good, bad, asked = -1, commits - 1, 0
    while bad - good > 1:
        middle = (good + bad) // 2
        asked += 1
        if fmean(machine.difference(step * (middle >= culprit)) for _ in range(fixed)) > half:
            bad = middle
        else:
            good = middle
    return Played(bad, asked * fixed, len(ends), asked)


def _ends(machine: Machine, step: float) -> list[Block] | None:
    """The blocks of GOOD and BAD that show the step; ``None`` if the last look does not."""
    if machine.ends:
        return [machine.block(step) for _ in range(machine.ends)]
    blocks = list[Block]()
    while len(blocks) < LOOKS[-1]:
        blocks.append(machine.block(step, len(blocks)))
        verdict = judge_paired(test="t", metric=PRIMARY, limit=Limit.of(PRIMARY), blocks=blocks)
        if verdict.outcome is Outcome.REGRESSED:
            return blocks
    return None


def _real(wanted: argparse.Namespace) -> None:
    """Run the command until there are enough results, then print what they add up to."""
    for number in range(len(_lines(wanted)), wanted.searches):
        with tempfile.TemporaryDirectory() as name:
            found = _search(Path(name), number, wanted)
        with wanted.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        print(json.dumps(found), flush=True)
    lines = _lines(wanted)
    right = sum(line["right"] for line in lines)
    minutes = fmean(line["minutes"] for line in lines)
    asked, blocks = (fmean(line[name] for line in lines) for name in ("asked", "blocks"))
    print(f"{wanted.proof}: {right} of {len(lines)} right, {asked:.1f} commits asked, {blocks:.1f} blocks, "
          f"{minutes:.1f} min a search")  # fmt: skip


def _search(folder: Path, number: int, wanted: argparse.Namespace) -> dict[str, Any]:
    """One search in a repository of its own: whether it found the commit, and what that took."""
    repository, result = folder / "repository", folder / "result.json"
    repository.mkdir()
    _git(repository, "init", "--quiet")
    culprit = 1 + random.Random(f"{wanted.seed} {number}").randrange(wanted.commits)
    commits = [_commit(repository, one, culprit, wanted) for one in range(wanted.commits + 1)]
    options = ["--no-explain", "--metric=tpot"] if wanted.proof == "timed" else []
    command = [sys.executable, "-m", "pytest_llmperf", "bisect", commits[0], commits[-1], f"--json={result}", *options]
    start = time.monotonic()
    done = subprocess.run(
        [*command, "--", *PYTEST], cwd=repository, capture_output=True, text=True, check=False,
        env=os.environ | {"LLMPERF_CACHE": str(folder / "cache")},
    )  # fmt: skip
    if not result.exists():
        sys.exit(f"search {number}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    found = json.loads(result.read_text(encoding="utf-8"))
    return {
        "proof": wanted.proof,
        "culprit": culprit,
        "right": found["found"] and commits[culprit].startswith(found["culprits"][0]["name"]),
        "belief": found["belief"],
        "ratio": found["ratio"],
        "asked": len(found["asked"]),
        "blocks": found["blocks"],
        "minutes": (time.monotonic() - start) / 60,
    }


def _commit(repository: Path, number: int, culprit: int, wanted: argparse.Namespace) -> str:
    is_bad = number >= culprit
    inject = f"--llmperf-inject=work:+{wanted.step:g}%" if is_bad and wanted.proof == "timed" else ""
    files = {"test_decode.py": TEST, "pytest.ini": f"[pytest]\naddopts = {inject}\n# commit {number}\n"}
    if wanted.proof == "counted":
        files |= {"conftest.py": ONE_MORE_OPERATOR, "extra": str(int(is_bad))}
    for name, text in files.items():
        (repository / name).write_text(text, encoding="utf-8")
    _git(repository, "add", "--all")
    _git(repository, "-c", "user.name=proof", "-c", "user.email=proof@localhost", "commit", "-qm", f"commit {number}")
    return _git(repository, "rev-parse", "HEAD")


def _git(repository: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=repository, check=True, capture_output=True, text=True
    ).stdout.strip()


def _lines(wanted: argparse.Namespace) -> list[dict[str, Any]]:
    text = wanted.results.read_text(encoding="utf-8") if wanted.results.exists() else ""
    return [line for line in map(json.loads, text.splitlines()) if line["proof"] == wanted.proof]


if __name__ == "__main__":
    main()
