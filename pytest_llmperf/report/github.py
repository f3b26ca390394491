"""Format a run for GitHub: pull request comment, step summary and annotations.

Names of tests and models, and exceptions of tests, come from the pull request and are untrusted. A body has them in
``<code>`` or ``<pre>`` inside HTML blocks, where GitHub interprets neither Markdown nor ``@name`` nor ``#123``.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from pytest_llmperf.errors import UsageError
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.report.terminal import conclusion
from pytest_llmperf.report.verdict_rows import figure_texts, severity
from pytest_llmperf.report.why_text import why_line, why_text
from pytest_llmperf.text import plural, printable, slug
from pytest_llmperf.verdict.model import Outcome
from pytest_llmperf.verdict.verdict_file import CellVerdict, TestVerdicts, VerdictFile

COMMENT_BYTES = 65_536
"""GitHub's limit of a comment in characters; applied to bytes, of which there are at least as many."""
SUMMARY_BYTES = 1024**2
"""GitHub's limit of one step's summary."""
FAILURES_SHARE = 0.5
"""Maximum share of a body for the list of failures; the table, whose first rows repeat them, needs the rest."""

MOST_ERRORS = 10
"""Number of annotations that GitHub shows per level and step."""
LONGEST_TITLE = 255
"""GitHub's limit of an annotation's title, in characters."""
LONGEST_TEXT = 600
"""Maximum characters of one name or sentence, so that a single one cannot fill a comment."""
LONGEST_LIST = 5
TABLE_COLUMNS = 100

_MOVED = (Outcome.REGRESSED, Outcome.IMPROVED)
_UNDECIDED = (Outcome.INVALID, Outcome.INCONCLUSIVE, Outcome.NOT_COMPARABLE)
_HEADINGS = "".join(f"<th>{word}</th>" for word in ("verdict", "test", "metric", "baseline", "now", "change"))


@dataclass(frozen=True)
class CommentBlock:
    """An HTML block that may be truncated between two rows."""

    opening: str
    rows: Sequence[str]
    closing: str
    share: float = 1.0
    """Maximum share of the whole body."""


def comment(verdicts: VerdictFile) -> str:
    """Return the body of a pull request comment; its first line identifies the device's comment."""
    marker = f"<!-- pytest-llmperf {slug(verdicts.device_key)} -->\n"
    return marker + _body(verdicts, COMMENT_BYTES - len(marker))


def summary(verdicts: VerdictFile, most_bytes: int = SUMMARY_BYTES) -> str:
    """Return the same for a step summary, which may be longer.

    Raises:
        UsageError: there is not even room for the conclusion.
    """
    return _body(verdicts, most_bytes)


def workflow_commands(verdicts: VerdictFile) -> str:
    """Return workflow commands: an error at each failed test's line, and one warning if a cell is undecided."""
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
    """Return the body: failures and undecided cells, all cells (worst first), why figures changed, and commands."""
    heading, cut = f"### llmperf: {conclusion(verdicts)}\n\n", _cut_line(os.environ)
    room = most_bytes - _bytes(heading) - _bytes(cut)
    if room < 0:
        raise UsageError(
            f"no room: GitHub takes {SUMMARY_BYTES} bytes of a step's summary, of which {max(0, most_bytes)} are left; "
            "write the verdicts in a step of their own"
        )
    blocks = [
        CommentBlock("", list(_facts(verdicts)), ""),
        _failures_block(verdicts.tests),
        _undecided_block(verdicts.tests),
        _cells_block(verdicts.tests),
        _why_block(verdicts.tests),
        _reproduce_block(verdicts.tests),
    ]
    text, whole = _fitted(blocks, room)
    return f"{heading}{text}{'' if whole else cut}"


def _fitted(blocks: Iterable[CommentBlock], most_bytes: int) -> tuple[str, bool]:
    """Return as many whole rows as fit, in order, and whether all fit."""
    text, left, whole = "", most_bytes, True
    for block in blocks:
        frame = _bytes(block.opening + block.closing)
        count = _fitting(block.rows, min(left, int(block.share * most_bytes)) - frame)
        shown = f"{block.opening}{''.join(block.rows[:count])}{block.closing}" if count else ""
        text, left, whole = text + shown, left - _bytes(shown), whole and count == len(block.rows)
    return text, whole


def _fitting(rows: Sequence[str], most_bytes: int) -> int:
    """Count the first rows that fit."""
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
        count = plural(len(verdicts.missing), "test")
        yield f"<p>Missing: {count} of the baseline: {_codes(verdicts.missing)}</p>\n"
    if verdicts.differences:
        yield f"<p>The environment differs: {_codes(verdicts.differences)}</p>\n"


def _run_link(environ: Mapping[str, str]) -> str:
    """Return a link to the current workflow run; empty outside of a workflow."""
    names = ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID")
    if not all(environ.get(name) for name in names):
        return ""
    server, repository, run = (escape(environ[name]) for name in names)
    return f'<a href="{server}/{repository}/actions/runs/{run}">run and artifacts</a>'


def _cut_line(environ: Mapping[str, str]) -> str:
    link = _run_link(environ)
    return f"<p>Truncated to GitHub's size limit: the verdict file has the rest{link and f', see {link}'}.</p>\n"


def _failures_block(tests: Sequence[TestVerdicts]) -> CommentBlock:
    failed = [_failure(test) for test in tests if test.failed]
    return CommentBlock(f"<p>{plural(len(failed), 'test')} failed:</p>\n<ul>\n", failed, "</ul>\n", FAILURES_SHARE)


def _failure(test: TestVerdicts) -> str:
    lines = [_codes(_reasons(test), "<br>"), *map(_code, _telling(test))]
    return f"<li>{_code(test.test)}<br>{'<br>'.join(lines)}</li>\n"


def _reasons(test: TestVerdicts) -> list[str]:
    """Return why a test failed, one line per reason."""
    return [test.error] if test.error else [cell.sentence for cell in test.cells if cell.fails]


def _telling(test: TestVerdicts) -> list[str]:
    """Return the most telling fact about a failed test, if one is known."""
    return [why_line(test.why)] if test.why else []


def _undecided_block(tests: Sequence[TestVerdicts]) -> CommentBlock:
    """Return the reasons of undecided gating cells, the most frequent first."""
    groups: defaultdict[tuple[Outcome, str], list[str]] = defaultdict(list)
    for cell in (cell for test in tests for cell in test.cells if cell.counts and cell.outcome in _UNDECIDED):
        reason = _reason(cell)
        groups[cell.outcome, re.sub(r"\d[\d.e-]*", "0", reason)].append(reason)  # the detectable change differs by cell
    found = sorted(groups.items(), key=lambda group: -len(group[1]))
    rows = [_undecided_row(outcome, reasons) for (outcome, _), reasons in found[:LONGEST_LIST]]
    if more := found[LONGEST_LIST:]:
        rows.append(f"<li>{plural(len(more), 'more reason')}</li>\n")
    return CommentBlock("<p>Not decided:</p>\n<ul>\n", rows, "</ul>\n")


def _undecided_row(outcome: Outcome, reasons: Sequence[str]) -> str:
    such_as = "such as " if len({*reasons}) > 1 else ""
    return f"<li>{plural(len(reasons), 'cell')} {outcome.words}: {such_as}{_code(reasons[0])}</li>\n"


def _reason(cell: CellVerdict) -> str:
    """Return the part of the sentence after the outcome; the whole sentence if the outcome is elsewhere."""
    words = cell.outcome.words
    return re.split(f"; {words}: |: {words}, ", cell.sentence, maxsplit=1)[-1]


def _why_block(tests: Sequence[TestVerdicts]) -> CommentBlock:
    told = [
        f"<p>{_code(test.test)}</p>\n<pre>\n{escape(why_text(test.why, TABLE_COLUMNS))}\n</pre>\n"
        for test in tests
        if test.why
    ]
    return CommentBlock("<details><summary>Why</summary>\n", told, "</details>\n")


def _cells_block(tests: Sequence[TestVerdicts]) -> CommentBlock:
    cells = [(test, cell) for test in tests for cell in test.cells if _is_shown(cell)]
    cells.sort(key=lambda pair: severity(pair[1]))
    opening = f"<details><summary>{plural(len(cells), 'cell')}</summary>\n<table>\n<tr>{_HEADINGS}</tr>\n"
    empty = [_empty_row(test) for test in tests if not (test.cells or test.error or test.workloads)]
    return CommentBlock(opening, [*(_row(test, cell) for test, cell in cells), *empty], "</table>\n</details>\n")


def _is_shown(cell: CellVerdict) -> bool:
    """Return whether to show a cell: gating cells and changes, but no improvement against an anchor."""
    if cell.against and cell.outcome is Outcome.IMPROVED:
        return False
    return cell.counts or cell.outcome in _MOVED


def _row(test: TestVerdicts, cell: CellVerdict) -> str:
    word = f"<b>{cell.outcome.words}</b>" if cell.fails else cell.outcome.words
    word += "" if cell.counts else ", does not gate"
    word += f" since {_code(cell.against)}" if cell.against else ""
    numbers = "".join(f'<td align="right">{escape(printable(figure))}</td>' for figure in figure_texts(cell))
    return f"<tr><td>{word}</td><td>{_code(test.test)}</td><td>{METRICS[cell.metric].title}</td>{numbers}</tr>\n"


def _empty_row(test: TestVerdicts) -> str:
    return f'<tr><td>invalid</td><td>{_code(test.test)}</td><td colspan="4">the test measured nothing</td></tr>\n'


def _reproduce_block(tests: Sequence[TestVerdicts]) -> CommentBlock:
    commands = [f"{escape(printable(test.reproduce))}\n" for test in tests if test.failed]
    return CommentBlock("<details><summary>Repeat what failed</summary>\n<pre>\n", commands, "</pre>\n</details>\n")


def _annotation(test: TestVerdicts) -> str:
    place = {"file": printable(test.file), "line": str(test.line or 1)} if test.file else {}
    message = "\n".join(map(printable, [*_reasons(test), *_telling(test)]))
    return _command("error", message, **place, title=printable(test.test)[:LONGEST_TITLE])


def _command(level: str, message: str, **properties: str) -> str:
    """Format a workflow command, escaped as in GitHub's own toolkit."""
    words = ",".join(
        f"{name}={_data(text).replace(':', '%3A').replace(',', '%2C')}" for name, text in properties.items()
    )
    return f"::{level} {words}::{_data(message)}\n"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _codes(texts: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(texts) - LONGEST_LIST} more" if len(texts) > LONGEST_LIST else ""
    return separator.join(map(_code, texts[:LONGEST_LIST])) + more


def _code(text: str) -> str:
    safe = printable(text)
    shown = safe if len(safe) <= LONGEST_TEXT else f"{safe[:LONGEST_TEXT]}..."
    return f"<code>{escape(shown)}</code>"


def _bytes(text: str) -> int:
    return len(text.encode())
