"""What a run decided, as GitHub shows it: the body of a comment or of a step's summary, and annotations of lines.

Names of tests and models, and what a test raised, come from the pull request. In a body they stand in ``<code>`` or
``<pre>`` within blocks of HTML, in which GitHub reads neither Markdown nor ``@name`` nor ``#123``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from pytest_llmperf.report.explain import explanation_text, explanation_title
from pytest_llmperf.report.results import change
from pytest_llmperf.report.terminal import conclusion
from pytest_llmperf.text import printable, slug
from pytest_llmperf.verdict.metrics import METRICS
from pytest_llmperf.verdict.model import Outcome, number
from pytest_llmperf.verdict.sentence import format_value
from pytest_llmperf.verdict_file import CellVerdict, TestVerdicts, VerdictFile

COMMENT_BYTES = 65_536
"""GitHub's limit for a comment, which it counts in characters: no more of these than of bytes."""
SUMMARY_BYTES = 1024**2
"""GitHub's limit for what one step adds to the summary."""
CUT = "<p>Cut here, at the size that GitHub takes: the verdict file among the run's artifacts has the rest.</p>\n"

MOST_ERRORS = 10
"""What GitHub shows of one level and step."""
LONGEST_TITLE = 255
"""Characters that GitHub takes as an annotation's title."""
LONGEST_TEXT = 600
"""Characters of one name or sentence: a single one must not fill a comment."""
LONGEST_LIST = 5
TABLE_COLUMNS = 100

_MOVED = (Outcome.REGRESSED, Outcome.IMPROVED)
_WORST_FIRST = (
    *(Outcome.REGRESSED, Outcome.INVALID, Outcome.INCONCLUSIVE, Outcome.NOT_COMPARABLE, Outcome.NEW),
    *(Outcome.MISSING, Outcome.ERROR, Outcome.IMPROVED, Outcome.UNCHANGED),
)
_HEADINGS = "".join(f"<th>{word}</th>" for word in ("verdict", "test", "metric", "baseline", "now", "change"))


@dataclass(frozen=True)
class Block:
    """A block of HTML that may be cut between two rows."""

    opening: str
    rows: Sequence[str]
    closing: str


def comment(verdicts: VerdictFile) -> str:
    """The body of a pull request's one comment on a device; the first line tells it from all others."""
    marker = f"<!-- pytest-llmperf {slug(verdicts.device_key)} -->\n"
    return marker + _body(verdicts, COMMENT_BYTES - len(marker))


def summary(verdicts: VerdictFile, most_bytes: int = SUMMARY_BYTES) -> str:
    """The same for the summary of a step, which takes more."""
    return _body(verdicts, most_bytes)


def workflow_commands(verdicts: VerdictFile) -> str:
    """Workflow commands: an error on each failed test's line, and one warning if anything is undecided."""
    lines = [_annotation(test) for test in verdicts.tests if test.failed]
    if verdicts.breach:
        lines.append(_command("error", printable(verdicts.breach), title="llmperf"))
    if len(lines) > MOST_ERRORS:
        more = f"{len(lines) - MOST_ERRORS + 1} more failed: see the summary"
        lines[MOST_ERRORS - 1 :] = [_command("error", more, title="llmperf")]
    undecided = [outcome for outcome in verdicts.outcomes if not outcome.decided and outcome is not Outcome.ERROR]
    if undecided or not verdicts.decided:
        lines.append(_command("warning", conclusion(verdicts), title="llmperf"))
    return "".join(lines)


def _body(verdicts: VerdictFile, most_bytes: int) -> str:
    """What failed, then every cell, the worst first, then how to repeat it."""
    heading = f"### llmperf: {conclusion(verdicts)}\n\n"
    blocks = [
        Block("", list(_facts(verdicts)), ""),
        Block("<ul>\n", [_failure(test) for test in verdicts.tests if test.failed], "</ul>\n"),
        _explanations_block(verdicts.tests),
        _cells_block(verdicts.tests),
        _reproduce_block(verdicts.tests),
    ]
    return heading + _fitted(blocks, most_bytes - len(heading))


def _fitted(blocks: Iterable[Block], most_bytes: int) -> str:
    """Whole rows in order, as many as there is room for."""
    text, left = "", most_bytes - len(CUT)
    for block in blocks:
        left -= len(block.opening) + len(block.closing)
        count = _fitting(block.rows, left)
        left -= sum(map(_bytes, block.rows[:count]))
        if count:
            text += f"{block.opening}{''.join(block.rows[:count])}{block.closing}"
        if count < len(block.rows):
            return text + CUT
    return text


def _fitting(rows: Sequence[str], most_bytes: int) -> int:
    """How many of the first rows fit."""
    left = most_bytes
    for count, row in enumerate(rows):
        left -= _bytes(row)
        if left < 0:
            return count
    return len(rows)


def _facts(verdicts: VerdictFile) -> Iterator[str]:
    commit = f", commit {_code(verdicts.run.commit[:12])}" if verdicts.run and verdicts.run.commit else ""
    link = _run_link(os.environ)
    yield f"<p>{_code(verdicts.device_key or 'nothing measured')}{commit}{link and f', {link}'}</p>\n"
    if verdicts.injected:
        yield f"<p><b>INJECTED</b> {_codes(verdicts.injected)}: these figures were made worse on purpose.</p>\n"
    if verdicts.breach:
        yield f"<p><b>failed</b>: {_code(verdicts.breach)}</p>\n"
    if verdicts.missing:
        yield f"<p>{len(verdicts.missing)} tests of the baseline are missing: {_codes(verdicts.missing)}</p>\n"
    if verdicts.differences:
        yield f"<p>This machine differs from the baseline's: {_codes(verdicts.differences)}</p>\n"


def _run_link(environ: Mapping[str, str]) -> str:
    """The run of the workflow that this is made in; empty outside of one."""
    names = ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID")
    if not all(environ.get(name) for name in names):
        return ""
    server, repository, run = (escape(environ[name]) for name in names)
    return f'<a href="{server}/{repository}/actions/runs/{run}">run and artifacts</a>'


def _failure(test: TestVerdicts) -> str:
    return f"<li>{_code(test.test)}<br>{'<br>'.join(map(_code, _reasons(test)))}</li>\n"


def _reasons(test: TestVerdicts) -> list[str]:
    """Why a test failed, a line each."""
    return [test.error] if test.error else [cell.sentence for cell in test.cells if cell.fails]


def _explanations_block(tests: Sequence[TestVerdicts]) -> Block:
    told = [
        f"<p>{_code(test.test)}: {explanation_title(one)}</p>\n"
        f"<pre>\n{escape(explanation_text(one, TABLE_COLUMNS))}\n</pre>\n"
        for test in tests
        for one in test.explanations
    ]
    return Block("<details><summary>Where the time went</summary>\n", told, "</details>\n")


def _cells_block(tests: Sequence[TestVerdicts]) -> Block:
    cells = [(test, cell) for test in tests for cell in test.cells if _is_shown(cell)]
    cells.sort(key=lambda pair: (not pair[1].fails, not pair[1].counts, _WORST_FIRST.index(pair[1].outcome)))
    opening = f"<details><summary>{len(cells)} cells</summary>\n<table>\n<tr>{_HEADINGS}</tr>\n"
    empty = [_empty_row(test) for test in tests if not (test.cells or test.error or test.workloads)]
    return Block(opening, [*(_row(test, cell) for test, cell in cells), *empty], "</table>\n</details>\n")


def _is_shown(cell: CellVerdict) -> bool:
    """What gates, and of the rest what moved; not the good news of long ago."""
    if cell.against and cell.outcome is Outcome.IMPROVED:
        return False
    return cell.counts or cell.outcome in _MOVED


def _row(test: TestVerdicts, cell: CellVerdict) -> str:
    metric = METRICS[cell.metric]
    word = f"<b>{cell.outcome.words}</b>" if cell.fails else cell.outcome.words
    word += "" if cell.counts else ", does not gate"
    word += f" since {_code(cell.against)}" if cell.against else ""
    baseline = "-" if cell.baseline is None else format_value(metric, cell.baseline)
    figures = (baseline, format_value(metric, _now(cell)), change(cell))
    numbers = "".join(f'<td align="right">{escape(printable(figure))}</td>' for figure in figures)
    return f"<tr><td>{word}</td><td>{_code(test.test)}</td><td>{metric.title}</td>{numbers}</tr>\n"


def _now(cell: CellVerdict) -> float | str | None:
    """What the ratio is of: where fresh runs confirmed the first one, the mean of all."""
    if cell.candidates and cell.ratio is not None:
        return number(cell.baseline) * cell.ratio
    return cell.value


def _empty_row(test: TestVerdicts) -> str:
    return f'<tr><td>invalid</td><td>{_code(test.test)}</td><td colspan="4">it ran and measured nothing</td></tr>\n'


def _reproduce_block(tests: Sequence[TestVerdicts]) -> Block:
    commands = [f"{escape(printable(test.reproduce))}\n" for test in tests if test.failed]
    return Block("<details><summary>Repeat what failed</summary>\n<pre>\n", commands, "</pre>\n</details>\n")


def _annotation(test: TestVerdicts) -> str:
    place = {"file": printable(test.file), "line": str(test.line or 1)} if test.file else {}
    message = "\n".join(map(printable, _reasons(test)))
    return _command("error", message, **place, title=printable(test.test)[:LONGEST_TITLE])


def _command(level: str, message: str, **properties: str) -> str:
    """A workflow command, escaped as GitHub's own toolkit does it."""
    words = ",".join(
        f"{name}={_data(text).replace(':', '%3A').replace(',', '%2C')}" for name, text in properties.items()
    )
    return f"::{level} {words}::{_data(message)}\n"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _codes(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - LONGEST_LIST} more" if len(texts) > LONGEST_LIST else ""
    return ", ".join(map(_code, texts[:LONGEST_LIST])) + more


def _code(text: str) -> str:
    safe = printable(text)
    shown = safe if len(safe) <= LONGEST_TEXT else f"{safe[:LONGEST_TEXT]}..."
    return f"<code>{escape(shown)}</code>"


def _bytes(text: str) -> int:
    return len(text.encode())
