"""Format why a test changed: the most telling line, counted work, operators and kernels by time, and the commit.

Every output shows this text: the terminal, ``llmperf ab``, GitHub's comment and summary, and the HTML report.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from pytest_llmperf.metrics import METRICS
from pytest_llmperf.report.text_table import wrapped
from pytest_llmperf.report.time_text import time_line, time_section
from pytest_llmperf.report.work_text import SAME_WORK, work_line, work_section, wrapped_work_line
from pytest_llmperf.system.git import Commit
from pytest_llmperf.text import cut, plural, printable, some
from pytest_llmperf.verdict.code_change import CodeChange
from pytest_llmperf.verdict.time_change import TimeChange
from pytest_llmperf.verdict.why import LEADING_SHARE, Cause, Why
from pytest_llmperf.verdict.work_change import WorkChange

OUTSIDE = "something outside of them changed (clocks, allocator, host)"
LONGEST_SUBJECT, LONGEST_AUTHOR = 72, 40
MOST_DIFFERENCES = 5


def why_line(why: Why, width: int | None = None) -> str:
    """Return the most telling fact in one line; counted work names fewer operators if that makes it fit in ``width``.

    Example: ``decode: bytes ×2.00 (+1.00 MiB: float32); the same operators; FLOPs ×1.00``.
    """
    cause = why.cause
    if (work := why.caused_by_work) is not None:
        return work_line(work, width, first=cause.name) + _little(cause)
    if cause.phase and (operator := why.caused_by_operator):
        return time_line(operator, cause.phase, cause.share)
    if cause.phase and cause.kind == "same":
        return f"{cause.phase}: {_same(why)}"
    told = code_lines(why.code) if cause.kind == "code" and why.code else iter(())
    return next(told, f"not explained: {_why_not(why)}")


def why_text(why: Why, width: int, *, color: bool = False) -> str:
    """Return the whole text, in at most ``width`` columns where its words fit."""
    return "\n".join(_lines(why, width, color=color))


def code_lines(code: CodeChange) -> Iterator[str]:
    """Yield what lies between both sides: the commits, and differences of the environment."""
    if commits := _commits(code):
        yield printable(commits)
    if code.differences:
        yield f"base and head differ in {some(code.differences, MOST_DIFFERENCES)}"


def _lines(why: Why, width: int, *, color: bool) -> Iterator[str]:
    first, work = why_line(why, width), why.caused_by_work
    if work is None:
        yield from _wrapped(first, why.code, width)
    else:
        yield wrapped_work_line(work, width, first=why.cause.name, more=_little(why.cause))
    for change in why.work:
        yield from work_section(change, width, told=why.cause.name if change is work else None)
    for one in why.times:
        yield from time_section(one, width, color=color)
    for line in code_lines(why.code) if why.code else ():
        if line != first:
            yield from _wrapped(line, why.code, width)


def _wrapped(line: str, code: CodeChange | None, width: int) -> Iterator[str]:
    """Yield a line; a command that does not fit gets a line of its own, so that it can be copied."""
    command = printable(shlex.join(code.bisect)) if code else ""
    if command and len(line) > width and command in line:
        yield wrapped(line.replace(f"{command} finds", "this finds") + ":", width)
        yield f"  {command}"
    else:
        yield wrapped(line, width)


def _little(cause: Cause) -> str:
    """Say that the counted work changed much less than the time."""
    if cause.share >= LEADING_SHARE or cause.ratio is None:
        return ""
    return f"; little beside {METRICS[cause.metric].title} ×{cause.ratio:.2f}"


def _same(why: Why) -> str:
    here = (why.cause.workload, why.cause.phase)
    profiled = any((one.workload, one.phase) == here and not one.reason for one in why.times)
    counted = any((one.workload, one.phase) == here and one.is_equal for one in why.work)
    if profiled:
        return f"{f'{SAME_WORK}, and ' if counted else ''}no operator takes longer under the profiler: {OUTSIDE}"
    return f"{SAME_WORK}: each takes longer, or {OUTSIDE}"


def _why_not(why: Why) -> str:
    found: list[WorkChange | TimeChange] = [*why.work, *why.times]
    reasons = [one.reason for one in found if one.reason]
    return printable(reasons[0]) if reasons else f"nothing is counted or profiled of {METRICS[why.cause.metric].title}"


def _commits(code: CodeChange) -> str:  # noqa: PLR0911  # one sentence for each case
    base, now, between = code.base[:12], code.now[:12], code.between
    if code.now_is_dirty:
        return f"commit: none yet, changes in the working tree{_on(now)}{_since(code)}"
    if code.base_is_dirty:
        return f"commit: unknown, the base had changes in its working tree{_on(base)}"
    if not (base and now):
        return ""
    if base == now:
        return f"commit: {now} on both sides"
    if between is None:
        return f"commit: unknown, this repository lacks the history between {base} and {now}"
    if between.only:
        return f"commit: {'' if between.ahead else 'without '}{_named(between.only)}"
    if not (between.ahead or between.behind):
        return f"commit: none between {base} and {now} that changes more than baselines"
    if between.behind:
        counts = (plural(between.ahead, "commit"), plural(between.behind, "commit"))
        return f"commit: one of {counts[0]} that only {now} has and {counts[1]} that only {base} has"
    return f"{plural(between.ahead, 'commit')} between {base} and {now}: {shlex.join(code.bisect)} finds the one"


def _on(commit: str) -> str:
    return f" on {commit}" if commit else ""


def _since(code: CodeChange) -> str:
    ahead = code.between.ahead if code.between else 0
    return f", and {plural(ahead, 'commit')} since {code.base[:12]}" if ahead else ""


def _named(commit: Commit) -> str:
    author, subject = (printable(text) for text in (commit.author, commit.subject))
    return f"{commit.hash[:12]} {cut(author, LONGEST_AUTHOR)}: {cut(subject, LONGEST_SUBJECT)}"
