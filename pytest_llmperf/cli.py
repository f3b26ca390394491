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
        if options.passes_on == "all":
            rest = [*more, *rest]
        elif more or (rest and not options.passes_on):
            unexpected, command = next(iter([*more, *rest])), f"llmperf {options.command}"
            raise UsageError(f"{command}: unexpected {unexpected!r}; see {command} --help")
        code: int = options.run(options, rest)
    except LlmperfError as error:
        print(f"llmperf: {error}", file=sys.stderr)  # noqa: T201  # a command talks
        return USAGE_ERROR
    except OSError as error:  # a full disk, say
        print(f"llmperf: {error.filename or 'cannot go on'}: {error.strerror or error}", file=sys.stderr)  # noqa: T201  # same
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
    parser.set_defaults(passes_on=False)
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
    record.set_defaults(run=_record, passes_on="all")

    _add_life(commands)

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
    ab.set_defaults(run=_ab, passes_on="after --")


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
    gate.set_defaults(run=_gate, passes_on="after --")


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


def _add_life(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--baselines", type=Path, default=DEFAULT_BASELINES, metavar="DIR", help="(default: baselines)")
    place.add_argument("--device-key", metavar="KEY", help="whose file, where the folder holds several")

    accept = commands.add_parser(
        "accept",
        parents=[place],
        allow_abbrev=False,  # --device is for pytest, and no short form of --device-key
        help="accept a step: only later runs are compared",
        description="With --record, arguments that are not listed here are passed on to pytest.",
    )
    accept.add_argument("test", metavar="TEST", help="name of a test, its end, or a pattern with * or ?")
    accept.add_argument("metric", nargs="?", metavar="METRIC", help="one metric (default: all that are judged)")
    accept.add_argument("--reason", required=True, metavar="TEXT", help="why the new level is right; it is stored")
    accept.add_argument("--record", type=int, metavar="N", help="then record the new level in N fresh processes")
    accept.set_defaults(run=_accept, passes_on="all")

    prune = commands.add_parser(
        "prune",
        parents=[place],
        help="remove tests that are gone, or bad runs, from a baseline",
        description="What is removed fits everything that is given.",
    )
    prune.add_argument("tests", nargs="*", metavar="TEST", help="name of a test, its end, or a pattern with * or ?")
    prune.add_argument("--run", action="append", default=[], dest="runs", metavar="ID")
    prune.add_argument("--session", action="append", default=[], dest="sessions", metavar="ID")
    prune.add_argument("--before", default="", metavar="DATE", help="only runs that started before it (UTC)")
    prune.add_argument("--dry-run", action="store_true", help="say what would go, and leave the file alone")
    prune.set_defaults(run=_prune)

    history = commands.add_parser("history", help="where levels changed, over all runs of the baselines")
    history.add_argument("test", nargs="?", metavar="TEST", help="name of a test, its end, or a pattern with * or ?")
    history.add_argument("metric", nargs="?", metavar="METRIC", help="one metric (default: those that gate)")
    history.add_argument("--baselines", type=Path, default=DEFAULT_BASELINES, metavar="FILE_OR_FOLDER")
    history.add_argument("--all", action="store_true", help="every metric that is judged")
    history.add_argument("--plot", type=Path, metavar="OUT.svg|OUT.png|OUT.html", help="draw them as well")
    history.set_defaults(run=_history)


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
    return _record_runs("record", options.runs, rest, option="--runs")


def _record_runs(command: str, runs: int, rest: Sequence[str], *, option: str) -> int:
    """Measure in fresh processes, each appending its run; the first exit code that is not 0 ends it."""
    from pytest_llmperf.fresh import run_perf_tests

    _refuse_no_runs(runs, option)
    arguments = ["--llmperf-measure-only", "--llmperf-update", *rest]
    for number in range(1, runs + 1):
        _print(f"llmperf {command}: run {number} of {runs}")
        code = run_perf_tests(arguments).exit_code
        if code:
            kept = f"{number - 1} runs were recorded before it"
            _print(f"llmperf {command}: run {number} ended with exit code {code}; {kept}")
            return code
    return 0


def _refuse_no_runs(runs: int, option: str) -> None:
    if runs < 1:
        raise UsageError(f"{option} {runs}: expected a whole number of at least 1")


def _accept(options: argparse.Namespace, rest: list[str]) -> int:
    from pytest_llmperf import life

    if options.record is not None:
        _refuse_no_runs(options.record, "--record")
    elif rest:
        raise UsageError(
            f"llmperf accept: unexpected {rest[0]!r}: only with --record are arguments passed on to pytest"
        )
    path = life.only_file(options.baselines, options.device_key)
    accepted = life.accept(path, options.test, options.metric, reason=options.reason)
    _print(*accepted.lines())
    if options.record is None:
        return 0
    arguments = [*rest, f"--llmperf-baselines={options.baselines}", *life.selecting(accepted.tests)]
    code = _record_runs("accept", options.record, arguments, option="--record")
    if code:
        _print("llmperf accept: the step stays accepted; record its level with llmperf record once that is mended")
    return code


def _prune(options: argparse.Namespace, _rest: list[str]) -> int:
    from pytest_llmperf import life
    from pytest_llmperf.records.life import Condemned

    condemned = Condemned(
        tests=options.tests,
        runs=options.runs,
        sessions=options.sessions,
        before=life.moment(options.before) if options.before else "",
    )
    path = life.only_file(options.baselines, options.device_key)
    _print(life.prune(path, condemned, dry_run=options.dry_run))
    return 0


def _history(options: argparse.Namespace, _rest: list[str]) -> int:
    from pytest_llmperf import life

    lines = life.tell_history(
        options.baselines, test=options.test, metric=options.metric, every_metric=options.all, plot=options.plot
    )
    _print(*lines)
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
