"""HTML report of a run: one file that works offline. ``page/`` holds its template, style and script.

Plotly draws the charts in the browser. A chart is only data until it is shown, so a thousand charts cost almost
nothing. The compressed plotly script is most of a small report's 2 MB. A thousand SVGs by matplotlib would take 13 MB
and 100 s of CPU time (a history of 7 points: 13 kB and 0.10 s).

Untrusted text is escaped twice: `_shown` escapes unprintable characters and the template's autoescape escapes HTML. The
page's content security policy allows only the two scripts whose hashes it names, and no network requests.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytest_llmperf.errors import BaselineError, MissingDependency
from pytest_llmperf.report.document import Document, document
from pytest_llmperf.report.inputs import Evidence, gather
from pytest_llmperf.storage.baseline_file import replace_file
from pytest_llmperf.text import printable
from pytest_llmperf.verdict.verdict_file import VerdictFile

PACKAGES = ("jinja2", "plotly", "ruptures")
"""Packages that the extra ``report`` installs."""


def require_report_extra() -> None:
    """Check early, before minutes of measuring, that the report's packages are installed.

    Raises:
        MissingDependency: a package of the extra is not installed.
    """
    for package in PACKAGES:
        if find_spec(package) is None:
            raise MissingDependency(package, extra="report", purpose="the HTML report")


def page(verdicts: VerdictFile, *, journal: Path | None = None, baselines: Path | None = None) -> str:
    """Return a verdict file as an HTML page, with the files beside it: see `gather`.

    Raises:
        MissingDependency: the extra ``report`` is not installed.
        BaselineError: a given file does not exist or is invalid.
    """
    require_report_extra()
    return render(document(gather(verdicts, journal=journal, baselines=baselines, here=Path.cwd())))


def write_report(path: Path, evidence: Evidence) -> None:
    """Write a run's page atomically.

    Raises:
        BaselineError: it cannot be written.
    """
    text = render(document(evidence))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text)
    except OSError as error:
        raise BaselineError(f"cannot write report {path}: {error.strerror or error}") from error


def render(shown: Document) -> str:
    """Render a document as HTML; the output is reproducible."""
    from jinja2 import Environment, StrictUndefined

    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    script, plotly = _asset("page.js"), _plotly()
    data = _shown(shown)
    return template.from_string(_asset("page.html")).render(
        data,
        charts=[*_number_charts(data)],
        ids={test["test"]: f"test-{number}" for number, test in enumerate(data["tests"], start=1)},
        style=_asset("page.css"),
        script=script,
        plotly=base64.b64encode(gzip.compress(plotly.encode(), mtime=0)).decode(),
        script_hashes=[_hash(script), _hash(plotly)],
    )


def _number_charts(data: dict[str, Any]) -> Iterator[Any]:
    """Yield every chart of the document, and store the charts' numbers in their figures."""
    parts = [part for test in data["tests"] for part in test["parts"]]
    groups = [
        *(figures for _, figures in data["compared"]),
        *(figures for part in parts for figures in part["figures"]),
    ]
    count = 0
    for figures in groups:
        yield from figures["charts"]
        figures["numbers"] = range(count, count := count + len(figures["charts"]))
        figures["first"] = figures["charts"][0]


def _shown(value: Any) -> Any:
    """Convert a document to JSON types, with all texts escaped."""
    if isinstance(value, str):
        return printable(value)
    if is_dataclass(value):
        return {field.name: _shown(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {_shown(name): _shown(part) for name, part in value.items()}
    return [_shown(part) for part in value] if isinstance(value, list | tuple) else value


def _hash(script: str) -> str:
    """Return a script's hash as a content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _asset(name: str) -> str:
    return (files("pytest_llmperf.report") / "page" / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
