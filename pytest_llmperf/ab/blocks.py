"""Interleaved blocks of a comparison: fresh subprocesses in balanced order, each complete block stored at once."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType

import pytest
from pydantic import BaseModel, ConfigDict

from pytest_llmperf.ab.lanes import ANY_DEVICE, Lane
from pytest_llmperf.ab.side import Side
from pytest_llmperf.errors import UsageError
from pytest_llmperf.metrics import Scalar
from pytest_llmperf.storage.baseline_file import replace_file
from pytest_llmperf.storage.process_result import ProcessResult
from pytest_llmperf.storage.provenance import Imported, SideProof, report_path
from pytest_llmperf.storage.requests_by_test import RequestCounts, write_requests_by_test
from pytest_llmperf.system.pytest_process import ProcessExit, only_tests, run_perf_tests
from pytest_llmperf.system.threads import Watch, run_together
from pytest_llmperf.text import printable

_ORDINARY_EXITS = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
_NOT_FOUND = re.compile(r"^ERROR: (?:file or directory )?not found: (.+)$", re.MULTILINE)

ARMS = ("base", "head")
"""Processes of a block."""

PAIR = 2
"""Blocks of a mirrored pair."""


class _Block(BaseModel):
    """The stored record of a complete block."""

    model_config = ConfigDict(frozen=True)

    number: int
    order: tuple[str, ...]
    seconds: float
    device: str = ""
    beside: int = 0


@dataclass(frozen=True)
class MeasuredBlock:
    """A complete block."""

    number: int
    base_first: bool
    seconds: float
    arms: Mapping[str, ProcessResult]
    imported: Mapping[str, Imported] = field(default_factory=dict)
    """Imports of each process that proved which revision it ran."""
    device: str = ""
    """Name of its lane; empty if pytest's arguments choose the device."""
    beside: int = 0
    """Number of other devices that measured blocks when it began."""


@dataclass(frozen=True)
class _Asked:
    """What the processes of a block measure."""

    tests: Sequence[str]
    times_only: bool
    requests: Mapping[str, RequestCounts]

    def arguments(self, requests_file: Path) -> list[str]:
        """Return pytest's arguments, and write the file that they name."""
        found = [*only_tests(self.tests), *(["--llmperf-times-only"] if self.times_only else [])]
        if self.requests:
            write_requests_by_test(requests_file, self.requests)
            found.append(f"--llmperf-requests-by-test={requests_file}")
        return found


_NO_REQUESTS: Mapping[str, RequestCounts] = MappingProxyType({})


class BlockSeries:
    """The blocks of one comparison, in a folder that survives an interruption.

    Args:
        folder: of journals, logs and blocks.
        base: one side.
        head: the other.
        arguments: pytest's, for both.
        seed: of the order within blocks.
        head_arguments: pytest's, for head alone.
        lanes: devices that measure blocks side by side. Both blocks of a mirrored pair run on one of them.
    """

    def __init__(  # noqa: PLR0913  # two sides, and how they are run
        self,
        folder: Path,
        base: Side,
        head: Side,
        *,
        arguments: Sequence[str],
        seed: int,
        head_arguments: Sequence[str] = (),
        lanes: Sequence[Lane] = (ANY_DEVICE,),
    ) -> None:
        self._folder = folder
        self._sides = {"base": base, "head": head}
        self._arguments = {"base": arguments, "head": [*arguments, *head_arguments]}
        self._seed = seed
        self._fallen_back = folder / "disturbed.txt"
        self._absent: dict[str, frozenset[str]] = dict.fromkeys(ARMS, frozenset())
        self.lanes = lanes
        self._ahead: dict[int, MeasuredBlock] = {}
        self.blocks: list[MeasuredBlock] = []
        folder.mkdir(parents=True, exist_ok=True)
        for written in sorted(folder.glob("*-block.json")):
            self._keep(self._read(_Block.model_validate_json(written.read_bytes())))

    def measure(
        self, tests: Sequence[str], *, times_only: bool = False, requests: Mapping[str, RequestCounts] = _NO_REQUESTS
    ) -> MeasuredBlock:
        """Measure one more block, with no other one beside it.

        Args:
            tests: keys of the tests to measure; if empty, all that the arguments select.
            times_only: whether to measure only times, because exact figures are decided.
            requests: numbers of requests of some tests; the others make as many as in the first block.

        Raises:
            UsageError: a process left nothing to compare, or did not run its own revision.
        """
        number = len(self.blocks) + 1
        block = self._measure(_Asked(tests, times_only, requests), number, self._half_measured(number) or self.lanes[0])
        self._keep(block)
        return block

    def measure_side_by_side(
        self, tests: Sequence[str], *, most: int, times_only: bool, requests: Mapping[str, RequestCounts]
    ) -> None:
        """Measure the next mirrored pairs, one on each device, up to block number ``most``.

        Blocks that an interrupted command measured ahead are kept, and only the missing ones are measured.

        Args:
            tests: as for `measure`.
            most: number of the last block that is wanted.
            times_only: as for `measure`.
            requests: as for `measure`.

        Raises:
            UsageError: as for `measure`; the processes on the other devices are killed.
        """
        asked = _Asked(tests, times_only, requests)
        missing = {pair: self._missing(pair, most) for pair in self._next_pairs()}
        queues = {self._lane_of(pair): numbers for pair, numbers in missing.items() if numbers}
        found = run_together(
            [partial(self._measure_in_turn, asked, numbers, lane, len(queues) - 1) for lane, numbers in queues.items()]
        )
        for block in chain(*found):
            self._keep(block)

    def _next_pairs(self) -> range:
        first = len(self.blocks) // PAIR + 1
        return range(first, first + len(self.lanes))

    def _missing(self, pair: int, most: int) -> list[int]:
        numbers = range(PAIR * (pair - 1) + 1, PAIR * pair + 1)
        return [one for one in numbers if len(self.blocks) < one <= most and one not in self._ahead]

    def _lane_of(self, pair: int) -> Lane:
        """Return a pair's device: the first pair runs alone, on the first one; then the devices take turns."""
        return self.lanes[(pair - 2) % len(self.lanes)]

    def _half_measured(self, number: int) -> Lane | None:
        """Return the device of the other block of the mirrored pair, if that was measured."""
        known = [*self.blocks, *self._ahead.values()]
        device = next((block.device for block in known if pair_of(block.number) == pair_of(number)), None)
        return next((lane for lane in self.lanes if lane.name == device), None)

    def _measure_in_turn(
        self, asked: _Asked, numbers: Sequence[int], lane: Lane, beside: int, watch: Watch
    ) -> list[MeasuredBlock]:
        return [self._measure(asked, number, lane, beside=beside, watch=watch) for number in numbers]

    def _measure(
        self, asked: _Asked, number: int, lane: Lane, *, beside: int = 0, watch: Watch | None = None
    ) -> MeasuredBlock:
        order = next(islice(block_orders(self._seed), number - 1, None))
        more = [*lane.arguments, *asked.arguments(self._path(number, "requests.json"))]
        seconds = sum(self._run(number, arm, more, lane, watch).seconds for arm in order)
        block = _Block(number=number, order=order, seconds=seconds, device=lane.name, beside=beside)
        measured = self._read(block)
        replace_file(self._path(number, "block.json"), block.model_dump_json())
        return measured

    def _keep(self, block: MeasuredBlock) -> None:
        """Add a block that is next in number, and those that were waiting for it."""
        self._ahead[block.number] = block
        while following := self._ahead.pop(len(self.blocks) + 1, None):
            self.blocks.append(following)

    @property
    def disturbed(self) -> str:
        """How devices disturbed each other, if `fall_back` was told; empty if they did not."""
        return self._fallen_back.read_text(encoding="utf-8") if self._fallen_back.exists() else ""

    def fall_back(self, disturbed: str) -> None:
        """Drop the blocks that ran beside others, since a part of their work was slowed, and remember why."""
        self._fallen_back.write_text(disturbed, encoding="utf-8")
        for block in [*self.blocks, *self._ahead.values()]:
            if block.beside:
                self._path(block.number, "block.json").unlink()
        self.blocks = [block for block in self.blocks if not block.beside]
        self._ahead.clear()

    @property
    def sides(self) -> dict[str, SideProof]:
        """Proof of what base and head ran, from the first block."""
        imported = self.blocks[0].imported
        return {arm: _proof(self._sides[arm], imported[arm]) for arm in ("base", "head") if arm in imported}

    def profile(self, arm: str, tests: Sequence[str], traces: Path) -> tuple[ProcessResult, ProcessExit]:
        """Run some tests of one side once more, under the profiler.

        Args:
            arm: ``base`` or ``head``.
            tests: keys of the tests.
            traces: folder for torch's traces.

        Raises:
            BaselineError: the process's journal is unreadable.
        """
        journal = self._folder / f"profile-{arm}.jsonl"
        lane = self.lanes[0]
        more = [*lane.arguments, *only_tests(tests), f"--llmperf-profile={traces}"]
        ended = self._start(arm, journal, more, self._absent[arm], cores=lane.cores)
        return ProcessResult.read(journal), ended

    def _run(self, number: int, arm: str, more: Sequence[str], lane: Lane, watch: Watch | None) -> ProcessExit:
        start = partial(self._start, arm, self._path(number, f"{arm}.jsonl"), more, cores=lane.cores, watch=watch)
        absent = self._absent[arm]
        ended = start(absent)
        while ended.exit_code == pytest.ExitCode.USAGE_ERROR and (gone := self._gone(arm, ended) - absent):
            absent |= gone
            ended = start(absent)
        self._absent[arm] = absent
        if ended.exit_code not in _ORDINARY_EXITS:
            self._prove(number, arm, must_report=False)
        refuse_abnormal_end(self._sides[arm], ended)
        self._prove(number, arm)
        return ended

    def _start(  # noqa: PLR0913  # what a process measures, and where it runs
        self,
        arm: str,
        journal: Path,
        more: Sequence[str],
        absent: frozenset[str],
        *,
        cores: frozenset[int] | None = None,
        watch: Watch | None = None,
    ) -> ProcessExit:
        side, log = self._sides[arm], journal.with_suffix(".log")
        for left in (journal, log, report_path(journal)):
            left.unlink(missing_ok=True)
        arguments = [word for word in self._arguments[arm] if word not in absent]
        if absent and not any(_is_path(word, side.folder) for word in arguments):
            return ProcessExit(pytest.ExitCode.NO_TESTS_COLLECTED, 0.0, log)
        return run_perf_tests(
            [*arguments, "--llmperf-measure-only", f"--llmperf-journal={journal}", *more],
            python=side.python,
            folder=side.folder,
            environment=side.environment,
            log=log,
            watch=watch,
            cores=cores,
        )

    def _gone(self, arm: str, ended: ProcessExit) -> set[str]:
        """Return arguments that name files or tests which base lacks: those are new. Head must have all of them."""
        if arm == "head" or ended.log is None:
            return set()
        named = set(_NOT_FOUND.findall(ended.log.read_text(encoding="utf-8", errors="replace")))
        folder = self._sides[arm].folder
        return {word for word in self._arguments[arm] if word in named or str(folder / word) in named}

    def _prove(self, number: int, arm: str, *, must_report: bool = True) -> Imported | None:
        """Return what a process imported of the repository; ``None`` without a side's folder or a measurement."""
        journal, side = self._path(number, f"{arm}.jsonl"), self._sides[arm]
        report = report_path(journal)
        if side.place is None or not (report.exists() or (must_report and journal.exists())):
            return None
        try:
            imported = Imported.read(report)
        except UsageError as error:
            raise UsageError(f"{side.name}: {error}") from error
        refuse_foreign(side, imported)
        return imported

    def _read(self, block: _Block) -> MeasuredBlock:
        arms = {arm: ProcessResult.read(self._path(block.number, f"{arm}.jsonl")) for arm in block.order}
        imported = {arm: proof for arm in block.order if (proof := self._prove(block.number, arm))}
        _refuse_shared(imported)
        base_first = block.order.index("base") < block.order.index("head")
        return MeasuredBlock(
            block.number, base_first, block.seconds, arms, imported, device=block.device, beside=block.beside
        )

    def _path(self, number: int, name: str) -> Path:
        return self._folder / f"{number:04}-{name}"


def pair_of(number: int) -> int:
    """Return the number of a block's mirrored pair; both count from 1."""
    return (number + 1) // PAIR


def block_orders(seed: int) -> Iterator[tuple[str, ...]]:
    """Yield process orders; blocks come in mirrored pairs, ABBA or BAAB at random, so that drift cancels.

    A pair has two processes of each side, so each side is its own null control.
    """
    chance = random.Random(seed)  # noqa: S311  # randomizes an experiment; not for security
    while True:
        first = ARMS if chance.random() < 0.5 else ARMS[::-1]  # noqa: PLR2004  # a fair coin
        yield first
        yield first[::-1]


def environment_of(arm: ProcessResult) -> Mapping[str, Scalar]:
    """Return the environment that a process recorded."""
    return arm.run.environment if arm.run else {}


def _proof(side: Side, imported: Imported) -> SideProof:
    """Return a side's proof; files in the side's folder are relative to it."""
    place = str(side.place.resolve()) + os.sep if side.place else ""
    packages = {name: file.removeprefix(place) for name, file in imported.packages.items()}
    return SideProof(commit=side.commit, packages=packages, requirements=[*side.requirements])


def refuse_abnormal_end(side: Side, ended: ProcessExit) -> None:
    """Reject a process that did not end by itself, with or without results.

    Raises:
        UsageError: it did not.
    """
    if ended.exit_code not in _ORDINARY_EXITS:
        found = f"pytest ended with exit code {ended.exit_code}: {ended.last_line}"
        raise UsageError(f"{side.name}: {found} (see {ended.log})")


def refuse_foreign(side: Side, imported: Imported) -> None:
    """Reject a process that imported a module of the repository from elsewhere than its own side.

    Raises:
        UsageError: it did.
    """
    for module, file in imported.foreign.items():
        raise UsageError(
            f"{side.name}: {printable(module)} was imported from {printable(file)}, which is not this side's: remove "
            "what leads there (an editable install, a .pth file, pythonpath, PYTHONPATH, sys.path in a conftest), or "
            "bring an environment for each side with --python-base and --python-head"
        )


def _refuse_shared(imported: Mapping[str, Imported]) -> None:
    """Reject sides that imported the same file: environments that the user brought may be one and the same."""
    base, head = (imported.get(arm, Imported()).packages for arm in ("base", "head"))
    for name in base:
        if base[name] == head.get(name):
            raise UsageError(
                f"base and head imported {printable(name)} from the same file, {printable(base[name])}: bring an "
                "environment of its own for each side with --python-base and --python-head"
            )


def _is_path(word: str, folder: Path) -> bool:
    return not word.startswith("-") and (folder / word.partition("::")[0]).exists()
