"""The generated reference is complete."""

from __future__ import annotations

import json
import re
import runpy
from dataclasses import fields
from pathlib import Path

import pytest
from _pytest.fixtures import FixtureFunctionDefinition

from pytest_llmperf import cli, plugin
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.runner import PERF_FIXTURES
from pytest_llmperf.runner.config import TestSettings
from pytest_llmperf.runner.device_option import add_device_option
from pytest_llmperf.runner.options import LIMIT_RULES_INI, PROCESS_OPTIONS, SETTINGS, add_options
from pytest_llmperf.storage.dataframe import COLUMNS

ROOT = Path(__file__).parents[2]
REFERENCE = runpy.run_path(str(ROOT / "docs" / "reference.py"), run_name="reference")


def page(name: str) -> str:
    return "\n".join(REFERENCE["PAGES"][name]()) + "\n"


def first_cells(text: str) -> set[str]:
    """Return the first cells of the rows of all tables."""
    return set(re.findall(r"^\| `?([^`|\s]+)", text, re.MULTILINE))


class Declared:
    """Fakes pytest's parser: collects the names of options."""

    def __init__(self):
        self.names = set()

    def getgroup(self, *_words):
        return self

    def addoption(self, name, **_more):
        self.names.add(name)

    def addini(self, name, *_words, **_more):
        self.names.add(name)


def test_every_option_and_ini_setting_is_there_with_its_meaning():
    declared = Declared()
    add_options(declared)
    add_device_option(declared)
    text = page("options")
    assert set(PROCESS_OPTIONS) <= first_cells(text)
    assert first_cells(text) - {"option", "ini", "---"} | {option.ini for option in SETTINGS} == declared.names
    assert all(f"`{option.ini}`" in text for option in SETTINGS)
    assert {LIMIT_RULES_INI, "llmperf_device", "--device"} <= declared.names
    assert not re.search(r"\|  \|$|%%", text, re.MULTILINE)


def test_every_fixture_is_there_with_its_docstring():
    text = page("fixtures")
    found = {name: one for name, one in vars(plugin).items() if isinstance(one, FixtureFunctionDefinition)}
    assert set(found) == set(PERF_FIXTURES)
    for name, fixture in found.items():
        assert f"## `{name}`\n\n{fixture.__doc__.splitlines()[0]}\n" in text


def test_every_keyword_of_the_marker_is_there_with_its_meaning():
    """They are in the order of the marker's description."""
    text = page("fixtures")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.MULTILINE))
    assert list(rows) == [one.name for one in fields(TestSettings)]
    assert list(rows) == re.findall(r"(\w+)=None", plugin.MARKER)
    assert all(meaning.endswith(".") for meaning in rows.values())


def test_every_command_is_there_with_its_options():
    """They are those of the command's help."""
    told = dict(re.findall(r"^## `llmperf (\w+)`\n(.*?)(?=^## |\Z)", page("commands"), re.MULTILINE | re.DOTALL))
    parsers = [parser for parser, _ in REFERENCE["command_parsers"]()]
    assert [f"llmperf {name}" for name in told] == [parser.prog for parser in parsers]
    assert set(re.findall(r"^  llmperf (\w+) ", cli.FIRST_STEPS, re.MULTILINE)) < set(told)
    for parser, text in zip(parsers, told.values(), strict=True):
        helped = set(re.findall(r"(?<![\w'])--?[a-z][\w-]*", parser.format_help())) - {"-h", "--help"}
        assert {word for word in helped if not re.search(rf"[` ]{word}\b", text)} == set()


def test_every_exit_code_is_there():
    assert first_cells(page("exit-codes")) > {str(int(code)) for code in pytest.ExitCode}
    assert {cli.USAGE_ERROR, cli.INTERRUPTED} < set(REFERENCE["EXIT_CODES"])


def test_every_metric_is_there():
    assert first_cells(page("metrics")) - {"metric", "---"} == {metric.name for metric in METRICS.values()}


def test_every_file_is_there_with_its_schema():
    text = page("files")
    schemas = [json.loads(found) for found in re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    assert [schema["title"] for schema in schemas] == [
        "Baseline", "ProfileFile", "VerdictFile", "Entry", "BisectionFile", "SelftestFile", "Header", "TestResult",
        "Note",
    ]  # fmt: skip
    assert set(COLUMNS) <= first_cells(text)


def test_what_is_made_by_mkdocs_is_in_its_navigation():
    """The navigation has every generated page and no others."""
    told = set(re.findall(r"reference/([\w-]+)\.md", (ROOT / "mkdocs.yml").read_text()))
    assert told == set(REFERENCE["PAGES"])
    assert all(page(name).startswith("# ") for name in told)
