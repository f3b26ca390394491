"""Pages that are made from the code while the documentation is built: options, metrics, file formats and the API."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import mkdocs_gen_files

import pytest_llmperf
from pytest_llmperf.declare import SETTINGS, Option, add_device_option, add_options
from pytest_llmperf.plugin import MARKER
from pytest_llmperf.records.schema import Baseline
from pytest_llmperf.verdict.metrics import METRICS, Metric
from pytest_llmperf.verdict_file import VerdictFile


def write(page: str, lines: Iterable[str]) -> None:
    """One page of the reference."""
    with mkdocs_gen_files.open(f"reference/{page}.md", "w") as file:
        file.write("\n".join(lines) + "\n")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table of Markdown; bars in cells are escaped."""
    for row in (heads, ["---"] * len(heads), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"


def options() -> Iterator[str]:
    """Every option of pytest's command line and ini file, and the marker."""
    yield "# Options\n"
    yield "The command line decides over the ini file, the marker over both.\n\n## Settings\n"
    yield from table(("option", "ini", "default", ""), map(setting, SETTINGS))
    yield "\n## Actions\n"
    yield from table(("option", ""), actions())
    yield f"\n## Marker\n\n`@pytest.mark.{MARKER}`"


def setting(option: Option) -> tuple[str, str, str, str]:
    """One row."""
    default = f"`{option.default}`" if option.default else ""
    return f"`{option.flag} {option.metavar}`", f"`{option.ini}`", default, option.help.replace("%%", "%")


class Declared:
    """Takes down what is declared to pytest's parser."""

    def __init__(self) -> None:
        self.options: list[tuple[str, str, str]] = []

    def getgroup(self, *_words: str) -> Self:
        """A group's options are taken down here as well."""
        return self

    def addoption(self, name: str, *, help: str, metavar: str = "", **_more: object) -> None:  # noqa: A002  # pytest's
        """One option of the command line."""
        self.options.append((name, metavar, help))

    def addini(self, *_words: object, **_more: object) -> None:
        """One option of the ini file."""


def actions() -> Iterator[tuple[str, str]]:
    """Options that are no settings."""
    declared: Any = Declared()
    add_options(declared)
    add_device_option(declared)
    settings = {option.flag for option in SETTINGS}
    for name, metavar, text in declared.options:
        if name not in settings:
            yield f"`{name} {metavar}`".replace(" `", "`"), text.replace("%%", "%")


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
    """JSON Schemas of what is written."""
    for title, model in (("Baseline", Baseline), ("Verdicts", VerdictFile)):
        yield f"# {title}\n" if title == "Baseline" else f"\n# {title}\n"
        yield f"```json\n{json.dumps(model.model_json_schema(), indent=1)}\n```"


def api() -> Iterator[str]:
    """Everything public."""
    yield "# API\n"
    for name in pytest_llmperf.__all__:
        if not name.startswith("__"):
            yield f"::: {getattr(pytest_llmperf, name).__module__}.{name}\n"
    for path in ("fixtures.LlmPerf", "measure.timer.KernelTimer", "measure.timing.Timing", "fixtures.PeakMemory"):
        yield f"::: pytest_llmperf.{path}\n"


for page, lines in {"options": options(), "metrics": metrics(), "files": files(), "api": api()}.items():
    write(page, lines)
