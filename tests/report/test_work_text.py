"""Text of a change of counted work: the line, its details, several widths and hostile names."""

from __future__ import annotations

import pytest
from sample_verdicts import phase_work, work_of

from pytest_llmperf.report.work_text import work_line, work_section

MIB = 1024.0**2

UPCAST = work_of(
    phase_work({"aten::mm": 15, "aten::_to_copy": 9, "aten::mul": 27}, {"float32": 2e6}, {"float32": 25.83 * MIB}),
    phase_work(
        {"aten::mm": 15, "aten::_to_copy": 27, "aten::mul": 36, "aten::pow": 9, "aten::mean": 1, "aten::rsqrt": -1 + 1},
        {"float32": 2e6},
        {"float32": 25.83 * MIB, "float64": 3.1 * MIB},
    ),
)
LOST_CACHE = work_of(
    phase_work({"aten::mm": 15}, {"bfloat16": 2e6}, {"bfloat16": 8e6}, growth={"flops": 0.0, "bytes": 1024.0}),
    phase_work({"aten::mm": 15}, {"bfloat16": 14.2e6}, {"bfloat16": 9e6}, growth={"flops": 2.1e6, "bytes": 1100.0}),
)


def test_an_upcast_is_named():
    """Operators, FLOPs and bytes in one line; the largest change first, names in order if changes are equal."""
    assert work_line(UPCAST) == (
        "decode: +37 operators a token: aten::_to_copy 9 -> 27, aten::mul 27 -> 36, aten::pow 0 -> 9 and 1 more; "
        "FLOPs ×1.00; bytes ×1.12 (+3.10 MiB: float64)"
    )


def test_a_lost_cache_grows():
    """The growth is named where it at least doubled; of bytes it hardly changed."""
    assert work_line(LOST_CACHE) == (
        "decode: the same operators; FLOPs ×7.10 (+12.2 MFLOP: bfloat16), and grow by 2.10 MFLOP a token "
        "(0 FLOP before); bytes ×1.12 (+977 KiB: bfloat16)"
    )
    growth = "  growth: FLOPs 0 FLOP -> 2.10 MFLOP, bytes 1.00 KiB -> 1.07 KiB more with each token"
    assert growth in work_section(LOST_CACHE, 160)


def test_what_moved_from_one_dtype_to_another():
    """Equal FLOPs in another dtype are no equal work."""
    found = work_of(
        phase_work({"aten::mm": 15}, {"bfloat16": 2e6}, {"bfloat16": 2 * MIB}),
        phase_work({"aten::mm": 15}, {"float32": 2e6}, {"float32": 4 * MIB}),
        phase="prefill",
    )
    line = "prefill: the same operators; FLOPs ×1.00 (bfloat16 -2.00 MFLOP); bytes ×2.00 (+2.00 MiB: float32 +4.00 MiB)"
    assert work_line(found) == line
    details = [
        "  FLOPs: 2.00 MFLOP: bfloat16 2.00 MFLOP -> 0 FLOP, float32 0 FLOP -> 2.00 MFLOP",
        "  bytes: 2.00 MiB -> 4.00 MiB: float32 0 B -> 4.00 MiB, bfloat16 2.00 MiB -> 0 B",
    ]
    title = "counted work per request in prefill, beside baseline of c0ffee:"
    assert [*work_section(found, 160)] == [title, f"  {line.removeprefix('prefill: ')}", *details]
    assert [*work_section(found, 160, told="bytes")] == [title, *details]


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ({"operators": {"aten::mm": 15, "aten::add": 1}}, "+1 operators a token: aten::add 0 -> 1; FLOPs ×1.00; bytes"),
        ({"operators": {"aten::mm": 14.25}}, "-0.75 operators a token: aten::mm 15 -> 14.25; FLOPs ×1.00"),
        ({"operators": {"aten::bmm": 15}}, "as many operators a token: aten::bmm 0 -> 15, aten::mm 15 -> 0; FLOPs"),
        ({"flops": {"float32": 2e6 + 2}}, "the same operators; FLOPs ×1.000001 (+2 FLOP: float32); bytes ×1.00"),
        ({"flops": {"float32": 4e9}}, "the same operators; FLOPs ×2000 (+4.00 GFLOP: float32); bytes ×1.00"),
        ({"flops": {}}, "the same operators; FLOPs ×0.00 (-2.00 MFLOP: float32); bytes ×1.00"),
        ({"allocations": 3}, "the same operators, FLOPs and bytes; allocations 2 -> 3"),
        ({"allocated_bytes": 65}, "the same operators, FLOPs and bytes; allocated 64 B -> 65 B"),
    ],
)  # fmt: skip
def test_small_and_odd_changes_show(after, words):
    """As many digits as tell both sides apart."""
    base = {"operators": {"aten::mm": 15}, "flops": {"float32": 2e6}, "bytes": {"float32": MIB}}
    assert work_line(work_of(phase_work(**base), phase_work(**{**base, **after}))).startswith(f"decode: {words}")


def test_flops_from_nothing_have_no_ratio():
    """Both values are shown instead."""
    found = work_of(phase_work({}, {}, {}), phase_work({"aten::mm": 1}, {"float32": 1500.0}, {}))
    assert "; FLOPs 0 FLOP -> 1.50 kFLOP (+1.50 kFLOP: float32); bytes ×1.00" in work_line(found)


def test_operators_without_a_formula_are_listed():
    """FLOPs that are not known are never silently 0."""
    found = work_of(phase_work({"custom::a": 1}, {}, {}), phase_work({"custom::a": 2}, {}, {}, unknown=["custom::a"]))
    assert [*work_section(found, 80)][-1] == "  FLOPs not counted: custom::a"


@pytest.mark.parametrize(
    ("first", "line"),
    [
        ("bytes", "decode: bytes ×1.12 (+3.10 MiB: float64); +37 operators a token: aten::_to_copy 9 -> 27, "),
        ("flops", "decode: FLOPs ×1.00; +37 operators a token: aten::_to_copy 9 -> 27, "),
        ("operators", "decode: +37 operators a token: aten::_to_copy 9 -> 27, "),
        ("allocations", "decode: allocations 2 -> 5; +37 operators a token: aten::_to_copy 9 -> 27, "),
    ],
)
def test_the_total_that_explains_a_regression_leads(first, line):
    """Whatever its name; the other totals follow."""
    more = [
        one.model_copy(update={"after": 5.0}) if one.name == first == "allocations" else one for one in UPCAST.totals
    ]
    found = work_line(UPCAST.model_copy(update={"totals": tuple(more)}), first=first)
    assert found.startswith(line)
    assert all(word in found for word in ("operators", "FLOPs", "bytes"))


@pytest.mark.parametrize("width", [60, 80, 160])
@pytest.mark.parametrize("told", [None, "bytes"], ids=["whole", "line told"])
@pytest.mark.parametrize("change", [UPCAST, LOST_CACHE], ids=["upcast", "cache"])
def test_the_section_fits(change, told, width):
    """Below a title, every operator is named that the line does not name."""
    lines = "\n".join(work_section(change, width, told=told)).split("\n")
    assert all(len(line) <= width for line in lines)
    assert lines[0].startswith("counted work per token in decode, ")
    words = " ".join([work_line(change, width, first=told or ""), *(line.strip() for line in lines)])
    assert all(f"{one.name} " in words for one in change.operators)
