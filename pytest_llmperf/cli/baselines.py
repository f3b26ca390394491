"""Commands on baselines: show, merge, record, export, schema, accept, prune and history."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_llmperf.cli.say import say
from pytest_llmperf.errors import UsageError
from pytest_llmperf.text import plural

DEFAULT_BASELINES = Path("baselines")
USUAL_RUNS = 5


def add_commands(commands: Any) -> None:
    """Declare the commands."""
    _add_files(commands)
    _add_life(commands)


def _add_files(commands: Any) -> None:
    show = commands.add_parser("show", help="print baselines as a table")
    show.add_argument("paths", nargs="*", type=Path, default=[DEFAULT_BASELINES], metavar="FILE_OR_FOLDER",
                      help="(default: baselines)")  # fmt: skip
    show.add_argument("--all", action="store_true", help="show every metric, not only those that gate by default")
    show.set_defaults(run=_show)

    merge = commands.add_parser("merge", help="merge baselines and journals of one device")
    merge.add_argument(
        "paths", nargs="+", type=Path, metavar="FILE", help="a baseline, or a journal from .llmperf/runs"
    )
    merge.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="baseline to write")
    merge.set_defaults(run=_merge)

    record = commands.add_parser(
        "record",
        allow_abbrev=False,  # --count is pytest-repeat's, not short for --counted
        help="run the perf tests in fresh processes and append every run to the baseline",
        description="Arguments that are not listed here are passed on to pytest.",
    )
    record.add_argument("--runs", type=int, metavar="N",
                        help="number of runs, each in a fresh process (default: 5; 1 with --counted)")  # fmt: skip
    record.add_argument("--counted", action="store_true",
                        help="count work and measure no times, with --llmperf-counted")  # fmt: skip
    record.set_defaults(run=_record, passes_on="all")

    export = commands.add_parser("export", help="write every cell of every run as CSV or Parquet")
    export.add_argument("source", type=Path, metavar="FILE_OR_FOLDER", help="baselines or journals")
    export.add_argument(
        "target", type=Path, metavar="OUT.csv|OUT.parquet", help="file to write; its suffix selects the format"
    )
    export.set_defaults(run=_export)

    schema = commands.add_parser("schema", help="print the JSON Schema of baseline or verdict files")
    schema.add_argument(
        "of", nargs="?", choices=("baseline", "verdicts"), default="baseline", help="(default: baseline)"
    )
    schema.set_defaults(run=_schema)


def _add_life(commands: Any) -> None:
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--baselines", type=Path, default=DEFAULT_BASELINES, metavar="DIR", help="(default: baselines)")
    place.add_argument("--device-key", metavar="KEY", help="device of the baseline, if the folder holds several")

    accept = commands.add_parser(
        "accept",
        parents=[place],
        allow_abbrev=False,  # --device is pytest's, not short for --device-key
        help="accept a change of level: compare with later runs only",
        description="With --record, arguments that are not listed here are passed on to pytest.",
    )
    accept.add_argument("test", metavar="TEST", help="name of a test, its end, or a pattern with * or ?")
    accept.add_argument("metric", nargs="?", metavar="METRIC", help="one metric (default: all that are judged)")
    accept.add_argument(
        "--reason", required=True, metavar="TEXT", help="why the new level is accepted; stored in the baseline"
    )
    accept.add_argument("--record", type=int, metavar="N", help="then record the new level in N fresh processes")
    accept.set_defaults(run=_accept, passes_on="all")

    prune = commands.add_parser(
        "prune",
        parents=[place],
        help="remove tests that are gone, or bad runs, from a baseline",
        description="Remove the records that match every given criterion.",
    )
    prune.add_argument("tests", nargs="*", metavar="TEST", help="name of a test, its end, or a pattern with * or ?")
    prune.add_argument(
        "--run", action="append", default=[], dest="runs", metavar="ID", help="only this run; may be repeated"
    )
    prune.add_argument(
        "--session",
        action="append",
        default=[],
        dest="sessions",
        metavar="ID",
        help="only this session; may be repeated",
    )
    prune.add_argument("--before", default="", metavar="DATE", help="only runs that started before it (UTC)")
    prune.add_argument(
        "--dry-run", action="store_true", help="print what would be removed, and leave the file unchanged"
    )
    prune.set_defaults(run=_prune)

    history = commands.add_parser("history", help="show where levels changed, over all runs of the baselines")
    history.add_argument("test", nargs="?", metavar="TEST", help="name of a test, its end, or a pattern with * or ?")
    history.add_argument("metric", nargs="?", metavar="METRIC", help="one metric (default: those that gate)")
    history.add_argument("--baselines", type=Path, default=DEFAULT_BASELINES, metavar="FILE_OR_FOLDER")
    history.add_argument("--all", action="store_true", help="show every judged metric")
    history.add_argument(
        "--plot", type=Path, metavar="OUT.svg|OUT.png|OUT.html", help="plot the history to this file too"
    )
    history.set_defaults(run=_history)


def _show(options: argparse.Namespace, _rest: list[str]) -> int:
    from pytest_llmperf.report.baseline_table import baseline_lines
    from pytest_llmperf.storage.baseline_file import baseline_files, load_baseline

    for path in options.paths:
        for file in baseline_files(path):
            say(*baseline_lines(load_baseline(file), name=str(file), every_metric=options.all))
    return 0


def _merge(options: argparse.Namespace, _rest: list[str]) -> int:
    from functools import reduce

    from pytest_llmperf.storage.baseline_file import load_baseline, update_baseline
    from pytest_llmperf.storage.merge import merge

    merged = reduce(merge, [load_baseline(path) for path in options.paths])
    written = update_baseline(options.output, lambda _old: merged)
    say(f"{options.output}: {plural(len(written.runs), 'run')}, {plural(len(written.cells), 'cell')}")
    return 0


def _record(options: argparse.Namespace, rest: list[str]) -> int:
    from pytest_llmperf.report.terminal import COUNTED_FLAG

    if options.counted and COUNTED_FLAG not in rest:
        rest = [COUNTED_FLAG, *rest]
    usual = 1 if COUNTED_FLAG in rest else USUAL_RUNS  # counts do not vary
    return _record_runs("record", usual if options.runs is None else options.runs, rest, option="--runs")


def _record_runs(command: str, runs: int, rest: Sequence[str], *, option: str) -> int:
    """Measure in fresh subprocesses, which each append their run; stop at the first exit code that is not 0."""
    from pytest_llmperf.system.pytest_process import run_perf_tests

    _refuse_no_runs(runs, option)
    arguments = ["--llmperf-measure-only", "--llmperf-update=all", *rest]
    for number in range(1, runs + 1):
        say(f"llmperf {command}: run {number} of {runs}")
        code = run_perf_tests(arguments).exit_code
        if code:
            kept = f"{plural(number - 1, 'run')} recorded before"
            say(f"llmperf {command}: run {number} ended with exit code {code}; {kept}")
            return code
    return 0


def _refuse_no_runs(runs: int, option: str) -> None:
    if runs < 1:
        raise UsageError(f"{option} {runs}: expected a whole number of at least 1")


def _accept(options: argparse.Namespace, rest: list[str]) -> int:
    from pytest_llmperf.cli import maintenance_commands

    if options.record is not None:
        _refuse_no_runs(options.record, "--record")
    elif rest:
        raise UsageError(
            f"llmperf accept: unexpected {rest[0]!r}: arguments are passed on to pytest only with --record"
        )
    accepted = [
        *maintenance_commands.accept(
            options.baselines, options.device_key, options.test, options.metric, reason=options.reason
        )
    ]
    say(*(line for one in accepted for line in one.lines()))
    if options.record is None:
        return 0
    tests = dict.fromkeys(test for one in accepted for test in one.tests)
    arguments = [*rest, f"--llmperf-baselines={options.baselines}", *maintenance_commands.selecting([*tests])]
    code = _record_runs("accept", options.record, arguments, option="--record")
    if code:
        say("llmperf accept: the change stays accepted; fix the failure, then record the new level with llmperf record")
    return code


def _prune(options: argparse.Namespace, _rest: list[str]) -> int:
    from pytest_llmperf.cli import maintenance_commands
    from pytest_llmperf.storage.maintenance import Condemned

    condemned = Condemned(
        tests=options.tests,
        runs=options.runs,
        sessions=options.sessions,
        before=maintenance_commands.moment(options.before) if options.before else "",
    )
    say(*maintenance_commands.prune(options.baselines, options.device_key, condemned, dry_run=options.dry_run))
    return 0


def _history(options: argparse.Namespace, _rest: list[str]) -> int:
    from pytest_llmperf.cli import maintenance_commands

    lines = maintenance_commands.tell_history(
        options.baselines, test=options.test, metric=options.metric, every_metric=options.all, plot=options.plot
    )
    say(*lines)
    return 0


def _export(options: argparse.Namespace, _rest: list[str]) -> int:
    from pytest_llmperf.storage.dataframe import export_runs

    say(f"{options.target}: {export_runs(options.source, options.target)} rows")
    return 0


def _schema(options: argparse.Namespace, _rest: list[str]) -> int:
    import json

    from pytest_llmperf.storage.schema import Baseline
    from pytest_llmperf.verdict.verdict_file import VerdictFile

    model = VerdictFile if options.of == "verdicts" else Baseline
    say(json.dumps(model.model_json_schema(), indent=1, sort_keys=True))
    return 0
