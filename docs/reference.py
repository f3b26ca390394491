"""Pages that are made from the code while the documentation is built.

mkdocs-gen-files runs this file; a test calls its functions, with nothing of mkdocs installed.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any, Self

import pytest
from pydantic import BaseModel

import pytest_llmperf
from pytest_llmperf import cli, plugin, runner
from pytest_llmperf.ab.bisection_file import BisectionFile
from pytest_llmperf.ab.selftest_stats import SelftestFile
from pytest_llmperf.metrics import METRICS, Metric
from pytest_llmperf.runner.config import TestSettings
from pytest_llmperf.runner.device_option import add_device_option
from pytest_llmperf.runner.options import PROCESS_OPTIONS, SETTINGS, Option, add_options
from pytest_llmperf.storage.dataframe import COLUMNS, TYPES
from pytest_llmperf.storage.journal import Header, Note
from pytest_llmperf.storage.schema import Baseline, ProfileFile, TestResult
from pytest_llmperf.verdict.outcome import Entry
from pytest_llmperf.verdict.verdict_file import VerdictFile

PYTESTS = "what pytest returned, where the command runs it"
FAILED = (
    "a regression or a test that failed (`ab`, `gate`); a false alarm or a missed slowdown (`selftest`); "
    "no single commit found (`bisect`)"
)

EXIT_CODES: Mapping[int, tuple[str, str]] = {
    pytest.ExitCode.OK: (
        'nothing failed; the last line says how many cells were decided, and "Nothing was verified." if none was',
        "the same",
    ),
    pytest.ExitCode.TESTS_FAILED: (
        "a test regressed or failed, an outcome that was asked to fail came up, or a run could not be recorded",
        f"{FAILED}; {PYTESTS}",
    ),
    cli.INTERRUPTED: (
        "interrupted, or a test file could not be imported; the results are kept",
        f"interrupted; {PYTESTS}",
    ),
    pytest.ExitCode.INTERNAL_ERROR: ("an error inside pytest or a plugin", PYTESTS),
    cli.USAGE_ERROR: (
        "a wrong option, marker, device or model, or a baseline that cannot be trusted",
        "an error to fix: a wrong option, an unusable file, a revision that does not build",
    ),
    pytest.ExitCode.NO_TESTS_COLLECTED: ("no perf test was selected", PYTESTS),
    6: ("more warnings than pytest's own `--max-warnings` allows", PYTESTS),
}
"""Of ``pytest --llmperf``, and of ``llmperf``."""

FILES: Mapping[str, tuple[str, type[BaseModel]]] = {
    "Baseline": ("`baselines/DEVICE.json`. `llmperf schema` prints this schema.", Baseline),
    "Operator profiles": ("`baselines/profiles/DEVICE.json`, beside the baseline.", ProfileFile),
    "Verdicts": (
        "Written by `--llmperf-verdicts` and `llmperf gate --verdicts`. `llmperf schema verdicts` prints this schema.",
        VerdictFile,
    ),
    "Measured workload": ("Written by `--llmperf-json`: one file a workload, its samples included.", Entry),
    "Bisection": ("Written by `llmperf bisect --json`.", BisectionFile),
    "Selftest": ("Written by `llmperf selftest --json`.", SelftestFile),
    "Journal: first line": (
        "`.llmperf/runs/RUN.jsonl`, or where `--llmperf-journal` says: a JSON text a line. The first is this one.",
        Header,
    ),
    "Journal: result": ("A line for each workload that a test measured.", TestResult),
    "Journal: note": ('A line for each test; it begins with `{"test":`.', Note),
}
"""Where each file comes from, and the model that it is written from."""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table of Markdown; bars in cells are escaped."""
    for row in (heads, ["---"] * len(heads), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"


def code(*words: str) -> str:
    """Words as code; nothing where there are none."""
    text = " ".join(filter(None, words))
    return f"`{text}`" if text else ""


def options() -> Iterator[str]:
    """Every option of pytest's command line and ini file."""
    declared = Declared.all()
    known = {word for option in SETTINGS for word in (option.flag, option.ini)}
    yield "# Options\n"
    yield "The command line decides over the ini file, the [marker](fixtures.md#marker) over both.\n\n## Settings\n"
    yield from table(("option", "ini", "default", "meaning"), map(setting, SETTINGS))
    yield "\n## Other settings of the ini file\n"
    inis = ((code(name), code(default), text) for name, default, text in declared.inis if name not in known)
    yield from table(("ini", "default", "meaning"), inis)
    yield "\n## Actions\n"
    known |= set(PROCESS_OPTIONS)
    actions = ((code(name, value), text) for name, value, text in declared.options if name not in known)
    yield from table(("option", "meaning"), actions)
    yield "\n## Between processes\n"
    yield "What `llmperf` and fresh processes are given; `pytest --help` leaves them out.\n"
    given = ((code(name, more.get("metavar", "")), plain(text)) for name, (text, more) in PROCESS_OPTIONS.items())
    yield from table(("option", "meaning"), given)


def setting(option: Option) -> tuple[str, str, str, str]:
    """One row."""
    return code(option.flag, option.metavar), code(option.ini), code(option.default), plain(option.help)


def plain(text: str | None) -> str:
    """A help text as argparse shows it."""
    return (text or "").replace("%%", "%")


class Declared:
    """Takes down what is declared to pytest's parser: names, then metavars or defaults, then what they mean."""

    def __init__(self) -> None:
        self.options: list[tuple[str, str, str]] = []
        self.inis: list[tuple[str, str, str]] = []

    @classmethod
    def all(cls) -> Self:
        """All that the plugin declares."""
        declared: Any = cls()
        add_options(declared)
        add_device_option(declared)
        return declared  # type: ignore[no-any-return]  # it stood for pytest's parser

    def getgroup(self, *_words: str) -> Self:
        """A group's options are taken down here as well."""
        return self

    def addoption(self, name: str, *, help: str, metavar: str = "", **_more: object) -> None:  # noqa: A002  # pytest's
        """One option of the command line."""
        self.options.append((name, metavar, plain(help)))

    def addini(self, name: str, help: str, *, default: object, **_more: object) -> None:  # noqa: A002  # pytest's
        """One option of the ini file."""
        self.inis.append((name, str(default or ""), help))


def fixtures() -> Iterator[str]:
    """Every fixture, and the marker with its keywords."""
    yield "# Fixtures and marker\n"
    for name in filter(runner.PERF_FIXTURES.__contains__, vars(plugin)):
        fixture = getattr(plugin, name)
        yield f"## `{name}`\n\n{inspect.getdoc(fixture)}\n\nGives `{fixture.__annotations__['return']}`.\n"
    yield f"## Marker\n\n`@pytest.mark.{plugin.MARKER.partition(':')[0]}`"
    yield "\nOn a module, a class or a test; the nearest decides. Each keyword replaces what the run's options say.\n"
    meanings = field_docstrings(TestSettings)
    yield from table(("keyword", "meaning"), ((code(one.name), meanings[one.name]) for one in fields(TestSettings)))


def field_docstrings(owner: type) -> dict[str, str]:
    """What stands below each field of a class."""
    (definition,) = ast.parse(inspect.getsource(owner)).body
    return {
        field.target.id: inspect.cleandoc(ast.literal_eval(below.value))
        for field, below in pairwise(getattr(definition, "body", ()))
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr)
    }


def commands() -> Iterator[str]:
    """Every command of ``llmperf`` with its options."""
    yield "# Commands\n"
    yield "`llmperf COMMAND --help` prints the same. What each returns: [exit codes](exit-codes.md)."
    for parser, text in command_parsers():
        yield f"\n## `{parser.prog}`\n\n{text}\n\n```console\n{usage(parser)}\n```\n"
        if parser.description:
            yield f"{plain(parser.description)}\n"
        yield from table(("argument", "meaning"), arguments(parser))


def command_parsers() -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """The parser of each command, and what the command does."""
    (commands,) = (one for one in cli._parser()._actions if isinstance(one, argparse._SubParsersAction))  # noqa: SLF001  # argparse has no public way
    for one in commands._choices_actions:  # noqa: SLF001  # same
        yield commands.choices[one.dest], plain(one.help)


def usage(parser: argparse.ArgumentParser) -> str:
    """In one line, however wide the terminal is that this is made in."""
    return " ".join(parser.format_usage().removeprefix("usage: ").split())


def arguments(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """A row each."""
    for action in parser._actions:  # noqa: SLF001  # argparse has no public way
        choices = "|".join(map(str, action.choices or ()))
        value = "" if action.nargs == 0 else str(action.metavar or choices or action.dest.upper())
        if action.dest != "help":
            yield code(", ".join(action.option_strings), value), plain(action.help)


def exit_codes() -> Iterator[str]:
    """What the exit codes mean."""
    yield "# Exit codes\n"
    rows = ((str(int(number)), *meanings) for number, meanings in sorted(EXIT_CODES.items()))
    yield from table(("code", "`pytest --llmperf`", "`llmperf`"), rows)


def metrics() -> Iterator[str]:
    """Every metric as it is defined."""
    yield "# Metrics\n"
    yield from table(
        ("metric", "unit", "kind", "better", "gates", "tolerate, catch", "definition"), map(row, METRICS.values())
    )


def row(metric: Metric) -> tuple[str, ...]:
    """One metric."""
    shares = f"{metric.tolerate:.0%}, {metric.catch:.0%}" if metric.catch else ""
    gates = "yes" if metric.gates else ""
    return f"`{metric.name}`", metric.unit, metric.kind, metric.better, gates, shares, metric.definition


def files() -> Iterator[str]:
    """JSON Schemas of what is written, and the columns of what is exported."""
    yield "# Files\n"
    for title, (where, model) in FILES.items():
        yield f"## {title}\n\n{where}\n\n```json\n{json.dumps(model.model_json_schema(), indent=1)}\n```\n"
    yield "## Columns of an export\n\nWritten by `llmperf export`; `env_*` columns follow, one for each field of the "
    yield "environment. Control characters in texts are escaped.\n"
    columns = ((code(name), TYPES[name], meaning) for name, meaning in COLUMNS.items())
    yield from table(("column", "type", "meaning"), columns)


def api() -> Iterator[str]:
    """Everything public."""
    yield "# API\n"
    for name in pytest_llmperf.__all__:
        if not name.startswith("__"):
            yield f"::: {getattr(pytest_llmperf, name).__module__}.{name}\n"


PAGES: Mapping[str, Callable[[], Iterator[str]]] = {
    "options": options,
    "fixtures": fixtures,
    "commands": commands,
    "exit-codes": exit_codes,
    "metrics": metrics,
    "files": files,
    "api": api,
}


def write_pages() -> None:
    """Put them beside the written ones."""
    import mkdocs_gen_files

    for page, lines in PAGES.items():
        with mkdocs_gen_files.open(f"reference/{page}.md", "w") as file:
            file.write("\n".join(lines()) + "\n")


if __name__ == "<run_path>":  # what runpy calls a file that it runs
    write_pages()
