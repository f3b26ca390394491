"""The ``llmperf`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmperf.errors import LlmperfError, UsageError

if TYPE_CHECKING:
    from pytest_llmperf.ab.command import Comparison

USAGE_ERROR = 4
"""The exit code of a wrong option or an unusable file, as pytest has it."""

INTERRUPTED = 2
FEWEST_BLOCKS = 4

DEFAULT_BASELINES = Path("baselines")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, what pytest returned, or 4 for what the user has to mend."""
    own, rest = _split(list(sys.argv[1:] if arguments is None else arguments))
    options, more = _parser().parse_known_args(own)
    try:
        if options.command == "record":
            rest = [*more, *rest]
        elif more or (rest and options.command not in {"ab", "gate"}):
            unexpected = next(iter([*more, *rest]))
            raise UsageError(
                f"llmperf {options.command}: unexpected {unexpected!r}; see llmperf {options.command} --help"
            )
        code: int = options.run(options, rest)
    except LlmperfError as error:
        print(f"llmperf: {error}", file=sys.stderr)  # noqa: T201  # a command talks
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("llmperf: interrupted; the same command goes on where it stopped", file=sys.stderr)  # noqa: T201  # same
        return INTERRUPTED
    return code


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Our own arguments, and pytest's after ``--``."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:cut], arguments[cut + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llmperf", description="Baselines of LLM inference performance.")
    parser.add_argument("--version", action="version", version=version("pytest-llmperf"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    show = commands.add_parser("show", help="print baselines as a table")
    show.add_argument("paths", nargs="*", type=Path, default=[DEFAULT_BASELINES], metavar="FILE_OR_FOLDER")
    show.add_argument("--all", action="store_true", help="every metric, not only those that gate by default")
    show.set_defaults(run=_show)

    merge = commands.add_parser("merge", help="join baselines and kept runs of one device")
    merge.add_argument("paths", nargs="+", type=Path, metavar="FILE")
    merge.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    merge.set_defaults(run=_merge)

    record = commands.add_parser(
        "record",
        help="run the perf tests in fresh processes and append every run to the baseline",
        description="Arguments that are not listed here are passed on to pytest.",
    )
    record.add_argument("--runs", type=int, default=5, metavar="N", help="fresh processes (default: 5)")
    record.set_defaults(run=_record)

    _add_ab(commands)
    _add_gate(commands)

    doctor = commands.add_parser("doctor", help="print what this machine can measure, and why not the rest")
    doctor.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, xpu, xpu:N or mps")
    doctor.set_defaults(run=_doctor)

    export = commands.add_parser("export", help="write every cell of every run as CSV or Parquet")
    export.add_argument("source", type=Path, metavar="FILE_OR_FOLDER")
    export.add_argument("target", type=Path, metavar="OUT.csv|OUT.parquet")
    export.set_defaults(run=_export)

    schema = commands.add_parser("schema", help="print the JSON Schema of baseline files")
    schema.set_defaults(run=_schema)
    return parser


def _add_ab(commands: Any) -> None:
    ab = commands.add_parser(
        "ab",
        help="compare two git revisions on this machine, interleaved, until every test is decided",
        usage="llmperf ab BASE [HEAD] [options] [-- pytest arguments]",
    )
    ab.add_argument("base", metavar="BASE", help="revision to compare with")
    ab.add_argument("head", nargs="?", metavar="HEAD", help="revision to judge (default: the working tree as it is)")
    _add_comparing(ab)
    ab.set_defaults(run=_ab)


def _add_gate(commands: Any) -> None:
    gate = commands.add_parser(
        "gate",
        help="screen against the stored baseline, then compare with the merge base what that leaves open",
        usage="llmperf gate [BRANCH] [options] [-- pytest arguments]",
    )
    gate.add_argument("base", nargs="?", metavar="BRANCH", help="what the change is to be merged into (default: as the "
                      "CI system says, else origin/HEAD, main or master)")  # fmt: skip
    gate.add_argument("--fail-on", default="", metavar="OUTCOMES", help="outcomes that fail as well, comma-separated")
    gate.add_argument("--strict", action="store_true", help="fail on whatever is not decided")
    _add_comparing(gate)
    gate.set_defaults(run=_gate)


def _add_comparing(ab: argparse.ArgumentParser) -> None:
    ab.add_argument("--budget", metavar="TIME", help="stop measuring after this long: 20m, 90s, 1.5h")
    ab.add_argument("--blocks", type=int, default=24, metavar="N", help="most blocks to measure (default: 24)")
    ab.add_argument("--prepare", metavar="CMD", help="build each checkout with this command instead of installing it")
    ab.add_argument("--python-base", metavar="PYTHON", help="interpreter of an environment for base")
    ab.add_argument("--python-head", metavar="PYTHON", help="interpreter of an environment for head")
    ab.add_argument("--restart", action="store_true", help="forget the blocks of an interrupted comparison")
    ab.add_argument("--verdicts", type=Path, metavar="FILE", help="write every verdict with its evidence as JSON")


def _ab(options: argparse.Namespace, rest: list[str]) -> int:
    from pytest_llmperf.ab.command import compare_and_exit

    return compare_and_exit(_comparison(options, rest, head=options.head), here=Path.cwd(), say=_print)


def _gate(options: argparse.Namespace, rest: list[str]) -> int:
    from pytest_llmperf.gate import Gate, pass_gate
    from pytest_llmperf.options import failing_outcomes

    wanted = Gate(
        comparison=_comparison(options, rest, head=None),
        base=options.base,
        fail_on=failing_outcomes(options.fail_on, strict=options.strict, option="--fail-on"),
        verdicts=options.verdicts,
    )
    return pass_gate(wanted, here=Path.cwd(), say=_print)


def _comparison(options: argparse.Namespace, rest: list[str], *, head: str | None) -> Comparison:
    from pytest_llmperf.ab.command import Comparison, budget_seconds
    from pytest_llmperf.ab.side import Recipe

    if options.blocks < FEWEST_BLOCKS:
        raise UsageError(f"--blocks {options.blocks}: expected at least {FEWEST_BLOCKS}, the first look")
    return Comparison(
        base=options.base or "",
        head=head,
        arguments=rest,
        base_recipe=Recipe(python=options.python_base, command=options.prepare),
        head_recipe=Recipe(python=options.python_head, command=options.prepare),
        budget_s=budget_seconds(options.budget) if options.budget else None,
        most_blocks=options.blocks,
        restart=options.restart,
        verdicts=options.verdicts,
    )


def _show(options: argparse.Namespace, _rest: list[str]) -> int:
    from pytest_llmperf.records.store import baseline_files, load_baseline
    from pytest_llmperf.report.show import baseline_lines

    for path in options.paths:
        for file in baseline_files(path):
            _print(*baseline_lines(load_baseline(file), name=str(file), every_metric=options.all))
    return 0


def _merge(options: argparse.Namespace, _rest: list[str]) -> int:
    from functools import reduce

    from pytest_llmperf.records.store import load_baseline, update_baseline
    from pytest_llmperf.records.window import merge

    merged = reduce(merge, [load_baseline(path) for path in options.paths])
    written = update_baseline(options.output, lambda _old: merged)
    _print(f"{options.output}: {len(written.runs)} runs, {len(written.cells)} cells")
    return 0


def _record(options: argparse.Namespace, rest: list[str]) -> int:
    from pytest_llmperf.fresh import run_perf_tests

    if options.runs < 1:
        raise UsageError(f"--runs {options.runs}: expected a whole number of at least 1")
    arguments = ["--llmperf-measure-only", "--llmperf-update", *rest]
    for number in range(1, options.runs + 1):
        _print(f"llmperf record: run {number} of {options.runs}")
        code = run_perf_tests(arguments).exit_code
        if code:
            _print(
                f"llmperf record: run {number} ended with exit code {code}; {number - 1} runs were recorded before it"
            )
            return code
    return 0


def _doctor(options: argparse.Namespace, _rest: list[str]) -> int:
    from pytest_llmperf.measure.doctor import examine
    from pytest_llmperf.report.show import finding_lines

    _print(*finding_lines(examine(options.device)))
    return 0


def _export(options: argparse.Namespace, _rest: list[str]) -> int:
    from pytest_llmperf.records.frame import export_runs

    _print(f"{options.target}: {export_runs(options.source, options.target)} rows")
    return 0


def _schema(_options: argparse.Namespace, _rest: list[str]) -> int:
    import json

    from pytest_llmperf.records.schema import Baseline

    _print(json.dumps(Baseline.model_json_schema(), indent=1, sort_keys=True))
    return 0


def _print(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)  # noqa: T201  # a command talks
