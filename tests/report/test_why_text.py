"""Text of why a test changed: its parts in order, several widths, the commits, and the documented example."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from sample_verdicts import HOSTILE, hostile_why, phase_work, why, work_of

from pytest_llmperf.report.terminal import _why_lines
from pytest_llmperf.report.why_text import code_lines, why_line, why_text
from pytest_llmperf.system.git import Commit, CommitsBetween
from pytest_llmperf.verdict.code_change import CodeChange, repeating
from pytest_llmperf.verdict.time_change import OperatorChange, TimeChange

MIB = 1024.0**2
BASE, HEAD = "1a2b3c4d5e6f" + "0" * 28, "5e6f7a8b9c0d" + "0" * 28
COMMIT = Commit(HEAD, "Jane Doe", "Compute the norms in float64")
TEST = "tests/perf/test_decode.py::test_decode[1-bf16]"

UPCAST = work_of(
    phase_work({"aten::mm": 57, "aten::_to_copy": 9, "aten::mul": 27}, {"float32": 2e6}, {"float32": 25.83 * MIB}),
    phase_work(
        {"aten::mm": 57, "aten::_to_copy": 27, "aten::mul": 36, "aten::pow": 9, "aten::mean": 9},
        {"float32": 2e6},
        {"float32": 25.83 * MIB, "float64": 13.1 * MIB},
    ),
    base="baseline of 1a2b3c4d5e6f",
)
PROFILE = TimeChange(
    workload="w", phase="decode", base="baseline of 1a2b3c4d5e6f", base_ms=4.0, now_ms=6.0,
    operators=tuple(
        OperatorChange(name=name, place="host", base_ms=base, now_ms=now, base_calls=before, now_calls=after)
        for name, base, now, before, after in [
            ("aten::_to_copy", 0.3, 1.9, 9, 27), ("aten::mul", 0.5, 0.66, 27, 36),
            ("(outside of operators)", 1.5, 1.55, 0, 0),
        ]
    ),
    traces=".llmperf/traces/20261121T202048Z-bbef2d13",
)  # fmt: skip


def between(ahead, behind=0, only=None, **more):
    facts = {"base": BASE, "now": HEAD, "repeat": repeating(TEST, ["--device=cuda"])} | more
    return CodeChange(between=CommitsBetween(ahead, behind, only), **facts)


BISECT = f"llmperf bisect 1a2b3c4d5e6f 5e6f7a8b9c0d -- '{TEST}' --device=cuda"
WHOLE = why(work=[UPCAST], times=[PROFILE], code=between(1, only=COMMIT))


def test_the_documented_example_is_what_is_shown():
    """In the width of the documentation."""
    page = (Path(__file__).parents[2] / "docs" / "explain.md").read_text(encoding="utf-8")
    assert f"```\n{why_text(WHOLE, 110)}\n```" in page


@pytest.mark.parametrize("width", [60, 80, 160])
@pytest.mark.parametrize("told", [WHOLE, hostile_why()], ids=["whole", "hostile"])
def test_the_text_fits_and_steers_nothing(told, width):
    """A narrow terminal gets fewer names in the first line; no line is a command for a GitHub runner."""
    lines = why_text(told, width).split("\n")
    assert all(line.isprintable() and not line.lstrip().startswith("::") for line in lines)
    assert all(len(line) <= width for line in lines)
    found = [line.partition(" ")[0] for line in lines if not line.startswith(" ")]
    assert found == ["decode:", "counted", "time", "commit:", *(["base"] if told is not WHOLE else [])]


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        (between(1, only=COMMIT), ["commit: 5e6f7a8b9c0d Jane Doe: Compute the norms in float64"]),
        (between(0, 1, COMMIT), ["commit: without 5e6f7a8b9c0d Jane Doe: Compute the norms in float64"]),
        (
            between(7),
            [f"7 commits between 1a2b3c4d5e6f and 5e6f7a8b9c0d: {BISECT} finds the one"],
        ),
        (
            between(2, 1),
            ["commit: one of 2 commits that only 5e6f7a8b9c0d has and 1 commit that only 1a2b3c4d5e6f has"],
        ),
        (between(0), ["commit: none between 1a2b3c4d5e6f and 5e6f7a8b9c0d that changes more than baselines"]),
        (between(0, now=BASE), ["commit: 1a2b3c4d5e6f on both sides"]),
        (
            between(7, now_is_dirty=True),
            ["commit: none yet, changes in the working tree on 5e6f7a8b9c0d, and 7 commits since 1a2b3c4d5e6f"],
        ),
        (
            between(0, now=BASE, now_is_dirty=True),
            ["commit: none yet, changes in the working tree on 1a2b3c4d5e6f"],
        ),
        (between(7, base_is_dirty=True), ["commit: unknown, the base had changes in its working tree on 1a2b3c4d5e6f"]),
        (
            CodeChange(base=BASE, now=HEAD),
            ["commit: unknown, this repository lacks the history between 1a2b3c4d5e6f and 5e6f7a8b9c0d"],
        ),
        (CodeChange(now=HEAD), []),
        (
            CodeChange(differences=("torch: 2.13 -> 2.14", "transformers: 5.17 -> 5.23")),
            ["base and head differ in torch: 2.13 -> 2.14, transformers: 5.17 -> 5.23"],
        ),
    ],
    ids=[
        "one", "one that is gone", "several", "diverged", "only baselines", "the same", "edited", "edited only",
        "edited base", "shallow", "no base", "dependencies",
    ],
)  # fmt: skip
def test_what_lies_between_both_sides(code, lines):
    """A command is shown only where it can find the commit."""
    assert [*code_lines(code)] == lines
    assert bool(code.bisect) == ("bisect" in "".join(lines))


def test_a_long_command_can_be_copied():
    """It has a line of its own, which is never wrapped."""
    found = why_text(why(work=[UPCAST], code=between(7)), 80).split("\n")[-2:]
    assert found == [
        "7 commits between 1a2b3c4d5e6f and 5e6f7a8b9c0d: this finds the one:",
        f"  {BISECT}",
    ]


@pytest.mark.parametrize(
    ("test", "given", "arguments"),
    [
        ("t.py::test[a b]", [], ["t.py::test[a b]"]),
        ("t.py::test", ["--device=cuda"], ["t.py::test", "--device=cuda"]),
        ("t.py::test", ["tests", "-k", "x"], ["tests", "-k", "x", "--llmperf-only=t.py::test"]),
        ("pytest_llmperf.suite.kernels::test", [], ["--pyargs", "pytest_llmperf.suite.kernels::test"]),
    ],
    ids=["test", "options", "paths", "suite"],
)
def test_a_test_is_repeated_with_the_arguments_given(test, given, arguments):
    """An argument may be a path or an option's value, so that only options are sure to name no other test."""
    assert [*repeating(test, given)] == arguments


def test_an_author_and_a_subject_stay_on_their_line():
    """They are untrusted, and as long as anybody likes."""
    (line,) = code_lines(between(1, only=Commit(HEAD, HOSTILE * 9, HOSTILE * 9)))
    assert line.isprintable()
    assert len(line) < 150


def test_the_summary_has_one_line_for_tests_with_the_same_cause():
    """A change of one function shows in many tests, with other bytes; the summary is not a list of all tests."""
    other_shape = UPCAST.model_copy(update={"totals": UPCAST.totals[:3]})
    alike = [why(work=[UPCAST]), why(work=[other_shape])]
    entries = [SimpleNamespace(test=f"test_{number}", why=one) for number, one in enumerate(alike)]
    entries.append(SimpleNamespace(test="test_fine", why=None))
    assert list(_why_lines(entries)) == [f"why: test_0 and 1 test alike: {why_line(alike[0])}"]
    reasons = [PROFILE.model_copy(update={"reason": f"reason {number}"}) for number in range(5)]
    others = [SimpleNamespace(test="test", why=why(times=[one])) for one in reasons]
    *_, last = _why_lines([*entries, *others])
    assert last == "why: 3 more causes: --llmperf-verdicts=FILE writes all of them"


def test_the_command_of_another_test_is_no_other_cause():
    """Tests that only the commits may explain are one line."""
    tests = [
        SimpleNamespace(test=test, why=why(metric="weights_bytes", code=between(7, repeat=(test,)))) for test in "abc"
    ]
    (line,) = _why_lines(tests)
    assert line.startswith("why: a and 2 tests alike: 7 commits between ")
