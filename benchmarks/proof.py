"""``llmperf ab`` on this machine: how often it cries wolf, how often it finds a real slowdown, what that takes.

In a repository of its own, commits that change nothing but a comment are compared with the commit before (A/A), and
commits that make every forward of the model longer by real work with the commit before that. The TPOT of every test is
one decision. Each comparison is kept as a line of ``--results``, and the same command goes on where it was
stopped::

    python benchmarks/proof.py [--pairs 5] [--slow 1] [--slowdown 15] [--kind sleep|work] [--results FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pytest_llmperf.metrics import PRIMARY
from pytest_llmperf.stats.binomial import lower_bound, upper_bound
from pytest_llmperf.verdict.model import Outcome
from pytest_llmperf.verdict.paired import LOOKS
from pytest_llmperf.verdict.verdict_file import read_verdicts

TEST = """
import pytest


@pytest.mark.parametrize("llm", ["fp32", "bf16", "nf4"], indirect=True)
@pytest.mark.parametrize("execution", ["generate", "loop"])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
def test_decode(llm, llmperf, batch_size, execution):
    llmperf.generate(llm, batch_size=batch_size, input_tokens=16, output_tokens=24, execution=execution)
"""
SETTINGS = """
[pytest]
addopts = {addopts}
# comparison {name}
"""
PYTEST = ("--device=cpu", "--llmperf-model=synthetic:tiny", "--llmperf-requests=10")


def main() -> None:
    """Make the comparisons that are not in the results yet, then print what all of them add up to."""
    wanted = _arguments()
    done = {line["name"] for line in _lines(wanted.results)}
    with tempfile.TemporaryDirectory() as name:
        repository = Path(name)
        _git(repository, "init", "--quiet")
        (repository / "test_decode.py").write_text(TEST, encoding="utf-8")
        base = _commit(repository, name="base", addopts="")
        for comparison, addopts in _comparisons(wanted):
            if comparison not in done:
                found = _compare(repository, base, _commit(repository, name=comparison, addopts=addopts), comparison)
                with wanted.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")
    _report(_lines(wanted.results), wanted)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="A/A comparisons")
    parser.add_argument("--slow", type=int, default=1, help="comparisons with a slower head")
    parser.add_argument("--slowdown", type=float, default=15.0, help="of each forward, in per cent")
    parser.add_argument("--kind", choices=("sleep", "work"), default="work", help="what the slower head does")
    parser.add_argument("--results", type=Path, default=Path("proof.jsonl"))
    return parser.parse_args()


def _comparisons(wanted: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Names and pytest arguments of the heads; the slower ones come in between, at all times of the day."""
    slower = f"--llmperf-inject={wanted.kind}:+{wanted.slowdown:g}%"
    every = max(1, wanted.pairs // max(1, wanted.slow))
    for number in range(1, max(wanted.pairs, wanted.slow * every) + 1):
        turn, place = divmod(number - 1, every)
        if number <= wanted.pairs:
            yield f"A/A {number}", ""
        if place == every // 2 and turn < wanted.slow:
            yield f"{wanted.kind} +{wanted.slowdown:g}% {turn + 1}", slower


def _compare(repository: Path, base: str, head: str, name: str) -> dict[str, Any]:
    """One comparison through the command line: what it decided, and what that took."""
    verdicts = repository / "verdicts.json"
    command = [sys.executable, "-m", "pytest_llmperf", "ab", base, head, f"--verdicts={verdicts}", "--", *PYTEST]
    start = time.monotonic()
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        sys.exit(f"{name}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    tests = read_verdicts(verdicts).tests
    # Products that are put on a forward are counted as operators too: what is proved here is the timing.
    cells = [cell for test in tests for cell in test.cells if cell.metric == PRIMARY.key]
    found = {
        "name": name,
        "outcomes": [cell.outcome for cell in cells],
        "blocks": [cell.blocks for cell in cells],
        "ratios": [cell.ratio for cell in cells],
        "measured_blocks": max(cell.blocks for cell in cells),
        "null": next(line for line in done.stdout.splitlines() if line.startswith("null control:")),
        "minutes": (time.monotonic() - start) / 60,
    }
    print(json.dumps(found), flush=True)
    return found


def _report(lines: Sequence[dict[str, Any]], wanted: argparse.Namespace) -> None:
    print("\n| head | comparisons | decisions | regressed | improved | unchanged | inconclusive | rate of regressed |"
          " blocks a decision | minutes a comparison |")  # fmt: skip
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- | ---: |")
    slower = f"{wanted.kind} +{wanted.slowdown:g}%"
    for head in ("A/A", slower):
        print(_row(head, [line for line in lines if line["name"].startswith(head)]))


def _row(head: str, lines: Sequence[dict[str, Any]]) -> str:
    outcomes = [outcome for line in lines for outcome in line["outcomes"]]
    if not outcomes:
        return f"| {head} | 0 |"
    found, total = outcomes.count(Outcome.REGRESSED), len(outcomes)
    counts = [str(outcomes.count(outcome)) for outcome in (Outcome.REGRESSED, Outcome.IMPROVED, Outcome.UNCHANGED,
                                                          Outcome.INCONCLUSIVE)]  # fmt: skip
    bound = f"at most {upper_bound(found, total):.1%}" if head == "A/A" else f"at least {lower_bound(found, total):.1%}"
    blocks = fmean(block for line in lines for block in line["blocks"])
    cells = [head, str(len(lines)), str(total), *counts, f"{found / total:.1%} ({bound})",
             f"{blocks:.1f} of {LOOKS[-1]}", f"{fmean(line['minutes'] for line in lines):.1f}"]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _commit(repository: Path, *, name: str, addopts: str) -> str:
    (repository / "pytest.ini").write_text(SETTINGS.format(name=name, addopts=addopts), encoding="utf-8")
    _git(repository, "add", "--all")
    _git(repository, "-c", "user.name=proof", "-c", "user.email=proof@localhost", "commit", "--quiet", "-m", name)
    return _git(repository, "rev-parse", "HEAD")


def _git(repository: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=repository, check=True, capture_output=True, text=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
