"""The ``llmperf`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pytest_llmperf.errors import LlmperfError, UsageError

USAGE_ERROR = 4
"""The exit code of a wrong option or an unusable file, as pytest has it."""

INTERRUPTED = 2
FEWEST_BLOCKS = 4
TAKING_PYTEST_ARGUMENTS = ("ab", "selftest")

DEFAULT_BASELINES = Path("baselines")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, what pytest returned, or 4 for what the user has to mend."""
    own, rest = _split(list(sys.argv[1:] if arguments is None else arguments))
    options, more = _parser().parse_known_args(own)
    try:
        if options.command == "record":
            rest = [*more, *rest]
        elif more or (rest and options.command not in TAKING_PYTEST_ARGUMENTS):
            unexpected = next(iter([*more, *rest]))
            raise UsageError(
                f"llmperf {options.command}: unexpected {unexpected!r}; see llmperf {options.command} --help"
            )
        code: int = options.run(options, rest)
    except LlmperfError as error:
        print(f"llmperf: {error}", file=sys.stderr)  # noqa: T201  # a command talks
        return USAGE_ERROR
    except KeyboardInterrupt:
        goes_on = "; the same command goes on where it stopped" if options.command == "ab" else ""
        print(f"llmperf: interrupted{goes_on}", file=sys.stderr)  # noqa: T201  # same
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
    _add_selftest(commands)

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
    ab.add_argument("--budget", metavar="TIME", help="stop measuring after this long: 20m, 90s, 1.5h")
    ab.add_argument("--blocks", type=int, default=24, metavar="N", help="most blocks to measure (default: 24)")
    ab.add_argument("--prepare", metavar="CMD", help="build each checkout with this command instead of installing it")
    ab.add_argument("--python-base", metavar="PYTHON", help="interpreter of an environment for base")
    ab.add_argument("--python-head", metavar="PYTHON", help="interpreter of an environment for head")
    ab.add_argument("--restart", action="store_true", help="forget the blocks of an interrupted comparison")
    ab.add_argument("--verdicts", type=Path, metavar="FILE", help="write every verdict with its evidence as JSON")
    ab.set_defaults(run=_ab)


def _add_selftest(commands: Any) -> None:
    selftest = commands.add_parser(
        "selftest",
        help="count false alarms and found slowdowns of your tests on this machine",
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
    selftest.add_argument("--blocks", type=int, default=24, metavar="N", help="most blocks of one (default: 24)")
    selftest.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    selftest.set_defaults(run=_selftest)


def _selftest(options: argparse.Namespace, rest: list[str]) -> int:
    from pytest_llmperf.ab.command import budget_seconds
    from pytest_llmperf.ab.selftest import Selftest, parse_sizes, selftest

    _require_blocks(options.blocks)
    if options.pairs < 1:
        raise UsageError(f"--pairs {options.pairs}: expected a whole number of at least 1")
    wanted = Selftest(
        arguments=rest,
        sizes=parse_sizes(options.sizes),
        kind=options.kind,
        pairs=options.pairs,
        budget_s=budget_seconds(options.budget),
        most_blocks=options.blocks,
        json=options.json,
    )
    return selftest(wanted, here=Path.cwd(), say=_print)


def _require_blocks(blocks: int) -> None:
    if blocks < FEWEST_BLOCKS:
        raise UsageError(f"--blocks {blocks}: expected at least {FEWEST_BLOCKS}, the first look")


def _ab(options: argparse.Namespace, rest: list[str]) -> int:
    from pytest_llmperf.ab.command import Comparison, budget_seconds, compare
    from pytest_llmperf.ab.side import Recipe

    _require_blocks(options.blocks)
    wanted = Comparison(
        base=options.base,
        head=options.head,
        arguments=rest,
        base_recipe=Recipe(python=options.python_base, command=options.prepare),
        head_recipe=Recipe(python=options.python_head, command=options.prepare),
        budget_s=budget_seconds(options.budget) if options.budget else None,
        most_blocks=options.blocks,
        restart=options.restart,
        verdicts=options.verdicts,
    )
    return compare(wanted, here=Path.cwd(), say=_print)


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
