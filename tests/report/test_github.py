"""GitHub output: comment bodies and annotations, also with hostile names."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sample_verdicts import SAMPLE, a_test, cell, phase_work, time_change, verdict_file, why, work_of

from pytest_llmperf.errors import UsageError
from pytest_llmperf.report.github import comment, summary, workflow_commands
from pytest_llmperf.report.why_text import why_text
from pytest_llmperf.system.git import Commit, CommitsBetween
from pytest_llmperf.verdict.code_change import CodeChange
from pytest_llmperf.verdict.model import Outcome

GOLDEN = Path(__file__).parent / "golden"
CUT = "<p>Truncated to GitHub's size limit: the verdict file has the rest"
ENVIRONMENT = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "o/r", "GITHUB_RUN_ID": "7"}


@pytest.fixture(autouse=True)
def _in_a_job(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("name", "write"), [("comment.md", comment), ("annotations.txt", workflow_commands)])
def test_what_github_gets_is_what_was_agreed(name, write):
    """After an intended change, write the text into the golden file and review the difference."""
    assert write(SAMPLE) == (GOLDEN / name).read_text(encoding="utf-8")


class Seen(HTMLParser):
    """Parser of a page that collects its tags, and its text with the enclosing tags."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts, self._open = set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag != "br":
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data):
        self.texts.append((data, set(self._open)))


def seen(markdown: str) -> Seen:
    """Render a body with an independent Markdown library."""
    from markdown_it import MarkdownIt

    page = Seen()
    page.feed(MarkdownIt("commonmark", {"html": True}).render(markdown))
    page.close()
    assert page._open == []
    return page


def test_a_hostile_name_stays_text_in_code():
    """GitHub links no ``@name`` and no ``#1``, and no tag, pipe, backtick or newline escapes."""
    page = seen(comment(SAMPLE))
    assert "img" not in page.tags
    hostile = [tags for text, tags in page.texts if "octocat" in text]
    assert len(hostile) > 3
    assert all(tags & {"code", "pre"} for tags in hostile)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", comment(SAMPLE))


def test_a_command_is_one_line_whatever_a_test_is_called():
    """The runner interprets each line that begins with ``::``."""
    lines = workflow_commands(SAMPLE).splitlines()
    assert [line.split("::")[1].split(" ")[0] for line in lines] == ["error", "error", "warning"]
    assert all(re.fullmatch(r"::(error|warning) (\w+=[^:,]*,?)+::[^\r\n\x1b]*", line) for line in lines)


@pytest.mark.parametrize(("write", "most"), [(comment, 65_536), (summary, 1024**2)])
def test_a_body_is_cut_at_githubs_limit_with_what_failed_first(write, most):
    """It is cut between two rows with all tags closed, and says where the rest is."""
    fine = [a_test(f"t.py::test_{number}", *[cell(Outcome.UNCHANGED)] * 20) for number in range(1000)]
    body = write(verdict_file(*fine, a_test("t.py::test_slow", cell(Outcome.REGRESSED, value=9.0))))
    assert most * 0.9 < len(body.encode()) <= most
    assert body.endswith(f'{CUT}, see <a href="https://github.com/o/r/actions/runs/7">run and artifacts</a>.</p>\n')
    assert 0 < body.index("test_slow") < body.index("test_1")
    assert "table" in seen(body).tags


def test_outside_of_a_workflow_what_is_cut_links_nowhere(monkeypatch):
    """Outside of a workflow there is no run to link to."""
    monkeypatch.delenv("GITHUB_RUN_ID")
    assert summary(SAMPLE, 2000).endswith(f"{CUT}.</p>\n")


def test_explanations_leave_the_table_its_room():
    """This holds for any number and length of explanations."""
    told = why(times=[time_change(f"aten::{'x' * 500}_{number}") for number in range(20)])
    slow = [
        a_test(f"t.py::test_slow_{number}", cell(Outcome.REGRESSED, value=9.0)).model_copy(update={"why": told})
        for number in range(20)
    ]
    body = comment(verdict_file(*slow, *[a_test("t.py::test_fine", cell(Outcome.UNCHANGED))] * 100))
    assert body.count("<tr><td>unchanged</td>") == 100
    assert body.index("</table>") < body.index("<summary>Why</summary>")
    assert len(body.encode()) <= 65_536


def test_what_failed_leaves_the_table_its_room():
    """Failures take half of the body; their number is still shown, and the table lists them first."""
    slow = [a_test(f"t.py::test_{'x' * 500}_{number}", cell(Outcome.REGRESSED, value=9.0)) for number in range(1000)]
    body = comment(verdict_file(*slow))
    assert "<p>1000 tests failed:</p>" in body
    assert 20_000 < body.index("</ul>") < 33_000
    assert body.count("<tr><td><b>regressed</b></td>") > 30
    assert len(body.encode()) <= 65_536


def test_one_test_that_failed_in_many_cells_leaves_room_for_the_others():
    """Its first few cells are listed, with the number of the rest."""
    many = a_test("t.py::test_many", *[cell(Outcome.REGRESSED, sentence="x" * 600)] * 200)
    body = comment(verdict_file(many, a_test("t.py::test_other", cell(Outcome.REGRESSED))))
    assert body.count("x" * 600) == 5
    assert "</code> and 195 more</li>" in body
    assert "<li><code>t.py::test_other</code>" in body


@pytest.mark.parametrize("most", [2000, 700, 400])
def test_what_the_step_wrote_before_counts_against_the_limit(most):
    """GitHub drops a summary that is too long as a whole."""
    assert len(summary(SAMPLE, most).encode()) <= most


@pytest.mark.parametrize("most", [200, 50, 0, -1])
def test_a_step_that_wrote_all_that_github_takes_has_no_room_for_a_summary(most):
    """This is an error, since GitHub would also drop the earlier text of the step."""
    with pytest.raises(
        UsageError, match=f"of which {max(0, most)} are left; write the verdicts in a step of their own"
    ):
        summary(SAMPLE, most)


def test_why_cells_are_undecided_is_told_by_reason_before_the_table():
    """The most frequent reason is first, reasons that differ in a number are grouped, and only a few are shown."""
    young = (
        "TPOT ×1.05: 4.20 ms, baseline 4.00 ms; inconclusive: this baseline finds {} % or more (2 runs in 1 session)"
    )
    cells = [cell(Outcome.INCONCLUSIVE, sentence=young.format(share)) for share in (7.9, 12)]
    cells += [cell(Outcome.INVALID, sentence=f"TPOT: invalid, {letter} neighbour @them") for letter in "abcdef"]
    cells += [cell(Outcome.NOT_COMPARABLE, sentence="TPOT 4.20 ms: not comparable, workload dtype: a -> b")] * 3
    cells += [cell(Outcome.INCONCLUSIVE, gates=False, sentence="TPOT: inconclusive, unimportant")]
    body = comment(verdict_file(a_test("t", *cells)))
    told = body[body.index("<p>Not decided:</p>") : body.index("<details>")]
    assert told.splitlines()[2:-1] == [
        "<li>3 cells not comparable: <code>workload dtype: a -&gt; b</code></li>",
        "<li>2 cells inconclusive: such as <code>this baseline finds 7.9 % or more (2 runs in 1 session)</code></li>",
        "<li>1 cell invalid: <code>a neighbour @them</code></li>",
        "<li>1 cell invalid: <code>b neighbour @them</code></li>",
        "<li>1 cell invalid: <code>c neighbour @them</code></li>",
        "<li>3 more reasons</li>",
    ]


def test_more_errors_than_github_shows_are_counted_in_the_last():
    """GitHub shows ten annotations per level and step."""
    slow = [a_test(f"t.py::test_{number}", cell(Outcome.REGRESSED, value=9.0)) for number in range(30)]
    lines = workflow_commands(verdict_file(*slow)).splitlines()
    assert len(lines) == 10
    assert lines[-1] == "::error title=llmperf::21 more failed: see the summary"


@pytest.mark.parametrize(
    ("verdicts", "heading", "commands"),
    [
        (verdict_file(a_test("t", cell(Outcome.UNCHANGED)), exit_code=0), "passed: 1 of 1", ""),
        (verdict_file(a_test("t", cell(Outcome.NEW))), "nothing was verified: 0 of 1", "::warning"),
        (verdict_file(), "nothing was verified: 0 of 0", "::warning"),
        (verdict_file(failed=True, breach="2 tests are missing"), "FAILED: 0 of 0", "::error title=llmperf::2 tests"),
    ],
    ids=["decided", "new", "empty", "breach"],
)
def test_nothing_decided_never_reads_as_a_pass(verdicts, heading, commands):
    assert f"### llmperf: {heading}" in comment(verdicts)
    assert workflow_commands(verdicts).startswith(commands)
    assert bool(workflow_commands(verdicts)) is bool(commands)


def test_injected_figures_are_marked():
    """The mark tells them from real measurements."""
    assert "<b>INJECTED</b> <code>tpot:+50%</code>" in comment(verdict_file(injected=["tpot:+50%"]))


def test_a_test_that_is_written_outside_of_the_repository_has_no_line():
    """The built-in suite is such a case."""
    broken = verdict_file(a_test("pytest_llmperf.suite::t", error="ValueError", file="", line=3))
    assert workflow_commands(broken).startswith("::error title=pytest_llmperf.suite%3A%3At::ValueError\n")


LINE = "decode: +2 operators a token: </pre># x 0 -> 2; FLOPs ×1.00; bytes ×1.00"
ONE_COMMIT = CodeChange(
    base="b" * 40, now="c" * 40, between=CommitsBetween(1, 0, Commit("c" * 40, "Eve @octocat", "</pre><img src=x> #1"))
)


def test_the_most_telling_line_stands_with_the_failure():
    """It is in the annotation too; the whole text is folded, below the table, and nothing breaks out of it."""
    changed = work_of(phase_work({"aten::mm": 1}, {}, {}), phase_work({"aten::mm": 1, "</pre># x": 2}, {}, {}))
    told = why(work=[changed], times=[time_change("gemv<float, 4>(@them) </pre>\n\n# x")], code=ONE_COMMIT)
    failed = a_test("test_one", cell(Outcome.REGRESSED)).model_copy(update={"why": told})
    body = comment(verdict_file(failed))
    page = seen(body)
    assert [sorted(tags & {"code", "pre"}) for text, tags in page.texts if LINE in text] == [["code"], ["pre"]]
    (text,) = (text for text, tags in page.texts if "gemv<float, 4>" in text)
    assert text.strip() == why_text(told, 100)
    assert body.index("</table>") < body.index("<summary>Why</summary>") < body.index("Repeat what failed")
    assert {"h1", "img"}.isdisjoint(page.tags)
    assert f"%0A{LINE}\n" in workflow_commands(verdict_file(failed))
