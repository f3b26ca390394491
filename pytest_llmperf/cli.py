"""The ``llmperf`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from pytest_llmperf.errors import LlmperfError, UsageError

USAGE_ERROR = 4
"""The exit code of a wrong option or an unusable file, as pytest has it."""

DEFAULT_BASELINES = Path("baselines")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, what pytest returned, or 4 for what the user has to mend."""
    options, rest = _parser().parse_known_args(arguments)
    try:
        if rest and options.command != "record":
            raise UsageError(f"llmperf {options.command}: unexpected {rest[0]!r}; see llmperf {options.command} --help")
        code: int = options.run(options, rest)
    except LlmperfError as error:
        print(f"llmperf: {error}", file=sys.stderr)  # noqa: T201  # a command talks
        return USAGE_ERROR
    return code


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
    arguments = ["--llmperf-measure-only", "--llmperf-update", *(word for word in rest if word != "--")]
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
