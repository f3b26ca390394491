"""All that only a GPU can show, in one command with one folder of results.

docs/gpu.md tells what is checked::

    python benchmarks/gpu_day.py --device cuda --out DIR [--only STAGE,...] [--seconds 470]

Each step is a process of its own with a time limit, and each check a line in ``DIR/results.jsonl`` as soon as it is
made; ``DIR/table.md`` holds them as a table, ``DIR/log.txt`` what the steps printed. ``--device cpu`` rehearses: what
needs CUDA is skipped. The exit code is 1 if a check failed, else 0.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from gpu import accuracy, gate, install, mishaps, probes, suites
from gpu.process import Processes, end_with_parent
from gpu.results import Results, State, counts, table
from gpu.runner import Day
from gpu.step import Place, Stage, Step

SECONDS = 470.0
STAGES = (
    Stage("install", 30, (Step(install.versions, 1), Step(install.entry_point, 5),
                          Step(install.nvidia_smi, 2, needs_cuda=True), Step(install.doctor, 22))),
    Stage("tests", 85, (Step(suites.cuda_tests, 85),)),
    Stage("processes", 15, (Step(probes.processes, 15, needs_cuda=True),)),
    Stage("probes", 40, (Step(probes.workspaces, 15),
                         *(Step(probe, 25, needs_cuda=True) for probe in probes.OF_CUDA)), at_once=6),
    Stage("accuracy", 75, (Step(accuracy.limits, 8), Step(accuracy.add, 16), Step(accuracy.softmax, 16),
                           Step(accuracy.product, 16), Step(accuracy.gemm_4bit, 19))),
    Stage("gate", 175, (Step(gate.model, 5), Step(gate.record, 84), Step(gate.green, 28), Step(gate.red, 34),
                        Step(gate.bare_loop, 24))),
    Stage("isolation", 30, (Step(gate.isolated, 30),)),
    Stage("kernels", 20, (Step(suites.kernels, 20),)),
    Stage("mishaps", 20, (Step(mishaps.works, 4), Step(mishaps.hangs, 4), Step(mishaps.fails, 4),
                          Step(mishaps.raises, 4), Step(mishaps.is_silent, 4)), by_name_only=True),
)  # fmt: skip
"""In the order in which they run: what decides whether the rest means anything comes first."""


def main() -> int:
    """Run the stages, print the table, and return the exit code."""
    arguments = _arguments()
    if arguments.step:
        return run_step(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    day = Day(Path(__file__).resolve(), arguments.device, arguments.out.resolve())
    with _interruptible(day.processes), contextlib.ExitStack() as stack:
        if any(stage.name in ("gate", "isolation") for stage in arguments.only):
            stack.enter_context(day.building(Place(day.device, day.out).model))
        day.run_stages(arguments.only, arguments.seconds)
    lines = day.lines()
    failed = [line for line in lines if line.state is State.FAILED]
    print(table(lines))
    if failed:  # once more, where the end of a long output is all that is seen
        print(f"\nFailed:\n\n{table(failed)}")
    print(f"\n{counts(lines)}")
    return int(bool(failed))


def run_step(arguments: argparse.Namespace) -> int:
    """What a step's own process does."""
    end_with_parent()
    stage, _, name = arguments.step.partition("/")
    steps = next(one.steps for one in STAGES if one.name == stage)
    step = next(one for one in steps if one.name == name)
    step.run(Place(arguments.device, arguments.folder), Results.of_this_step())
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a rehearsal")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; lines are added to it")
    parser.add_argument("--only", type=_stages, default=_stages(""), metavar="STAGE,...",
                        help=", ".join(stage.name for stage in STAGES if not stage.by_name_only))  # fmt: skip
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of it")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _stages(names: str) -> tuple[Stage, ...]:
    """Those that are named, in their order; without a name all but those that run by name only."""
    wanted = set(filter(None, names.split(",")))
    if unknown := wanted - {stage.name for stage in STAGES}:
        raise argparse.ArgumentTypeError(f"no stage {', '.join(sorted(unknown))}")
    return tuple(stage for stage in STAGES if stage.name in wanted or not (wanted or stage.by_name_only))


@contextlib.contextmanager
def _interruptible(processes: Processes) -> Iterator[None]:
    """On SIGTERM and SIGINT kill what runs, so that nothing is left behind, and end."""

    def end(number: int, _frame: object) -> NoReturn:
        processes.kill_all()
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
