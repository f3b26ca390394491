"""The gate from outside: a baseline is recorded, something changes, the test turns red or does not."""

from __future__ import annotations

import json
import re

import pytest

from pytest_llmperf.verdict.verdict_file import read_verdicts

QUIET_MACHINE = (1.00, 1.005, 0.995, 1.002, 0.998)

CHANGED = """
import pytest
import torch

@pytest.fixture
def change(llm):
    {change}

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_decode(llm, llmperf, change):
    llmperf.generate(llm, batch_size=2, execution="{execution}")
"""

EXTRA_PRODUCT = """
    square = torch.ones(8, 8)
    for layer in llm.model.model.layers:
        layer.register_forward_hook(lambda *_: [square @ square] and None)
"""


def written_run(path) -> str:
    return json.loads(path.read_text())["run"]["run_id"]


def changed(change: str = "pass", execution: str = "loop") -> str:
    return CHANGED.format(change=change, execution=execution)


def test_a_device_without_baseline_is_new_and_never_a_pass(project):
    """The first run exits 0, says that nothing was verified, and how to record a baseline."""
    project.write()
    result = project.run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["llmperf: 1 test, 0 of * Nothing was verified.", "to verify: llmperf record --runs 5 *"]
    )


def test_an_update_is_appended_and_the_next_run_compares(project):
    """Each update adds a run; exact metrics are decided from the first one on."""
    project.write()
    assert project.run("--llmperf-update").ret == 0
    result = project.run("--llmperf-update")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["baseline updated: * holds 2 runs of 1 session"])
    assert len(json.loads(project.baseline().read_text())["runs"]) == 2
    result.stdout.no_fnmatch_line("*Nothing was verified*")


def test_a_slower_decode_turns_its_own_test_red(project):
    """1.5 times slower against five runs: one sentence with both numbers, ratio, interval and limit, exit code 1."""
    project.write()
    project.record(*QUIET_MACHINE)
    result = project.run(step_ms=1.5)
    assert result.ret == 1
    result.assert_outcomes(failed=1)
    ratio = r"TPOT ×1.5\d* \[1\.\d+, 1\.\d+\]: "
    numbers = r"1.5\d ms > 1.0\d ms baseline, limit ×1.05 .*5 runs in 5 sessions.*"
    result.stdout.re_match_lines([ratio + numbers, r"FAILED test_perf.py::test_decode\[fp32\]"])


def test_two_regressions_of_one_test_are_one_line(project):
    """In CI, too, where pytest does not cut."""
    project.write(changed())
    project.record(*QUIET_MACHINE)
    project.write(changed(EXTRA_PRODUCT.strip()))
    project.monkeypatch.setenv("CI", "1")
    result = project.run(step_ms=1.5)
    (told,) = (line for line in result.outlines if line.startswith("TPOT "))
    assert re.search(
        r"TPOT ×1.5\d* \[.*\]: 1.5\d ms > 1.0\d ms baseline, .*\); also operators / token ×1\.\d+, .*FLOPs", told
    )
    (failed,) = (number for number, line in enumerate(result.outlines) if line.startswith("FAILED"))
    assert result.outlines[failed + 1].startswith("=")


@pytest.mark.parametrize("strict", [True, False])
def test_a_regression_that_is_expected_is_an_xfail(project, strict):
    """As for any test that is marked so; unexpectedly fast again, it is told as pytest tells it."""
    project.write()
    project.record(*QUIET_MACHINE)
    test = (project.path / "test_perf.py").read_text()
    project.write(test.replace("@pytest", f"@pytest.mark.xfail(reason='known', strict={strict})\n@pytest", 1))
    slow, equal = project.run("--llmperf-verdicts=out.json", step_ms=1.5), project.run()
    assert slow.ret == 0
    verdicts = read_verdicts(project.path / "out.json")
    assert not verdicts.failed
    assert not any(cell.fails for test in verdicts.tests for cell in test.cells)
    assert verdicts.outcomes["regressed"] == 1
    slow.assert_outcomes(xfailed=1)
    slow.stdout.fnmatch_lines(["regressed: *TPOT*"])
    equal.assert_outcomes(failed=int(strict), xpassed=int(not strict))


def test_an_equal_run_passes(project):
    """The same speed, work and memory is not red."""
    project.write()
    project.record(*QUIET_MACHINE)
    project.run(step_ms=1.003).assert_outcomes(passed=1)


def test_a_faster_decode_is_improved_and_says_how_to_bank_it(project):
    """Good news does not fail, and is not absorbed in silence."""
    project.write()
    project.record(*QUIET_MACHINE)
    result = project.run(step_ms=0.5)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["improved: *TPOT*", "improved: to make this the new level, run: llmperf accept *tpot*--record 5*"]
    )


@pytest.mark.parametrize("execution", ["loop", "generate"])
def test_one_extra_product_a_layer_fails_exactly(project, execution):
    """The operator counter needs one run and no statistics, whatever the noise."""
    project.write(changed(execution=execution))
    project.record(1.0)
    project.write(changed(EXTRA_PRODUCT.strip(), execution=execution))
    result = project.run(step_ms=1.0)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["operators / token ×*: * > * baseline, limit * (exact, 1 run); also *FLOPs / token ×1.005, *", "FAILED *"]
    )


@pytest.mark.parametrize(
    "hold",
    [
        "llm.model.register_forward_hook(lambda *_: setattr(llm, 'held', torch.zeros(64 << 20, dtype=torch.uint8)))",
        "llm.held = torch.zeros(64 << 20, dtype=torch.uint8)",
    ],
    ids=["during decode", "since before"],
)
def test_64_mib_held_during_decode_fails(project, hold):
    """Memory is exact on a CPU too, and counts what was there before decode began."""
    project.write(changed())
    project.record(1.0)
    project.write(changed(hold))
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*decode peak allocated ×*: * MiB > * baseline*"])


def test_an_injection_turns_the_gate_red_and_is_marked_everywhere(project):
    """``--llmperf-inject`` proves that the gate works, and cannot pass for a measurement."""
    project.write()
    project.record(*QUIET_MACHINE)
    result = project.run("--llmperf-inject=tpot:+50%", "--llmperf-json=out")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["llmperf: * INJECTED tpot:+50%", "*injected tpot:+50%*", "*INJECTED tpot:+50%*", "FAILED *"]
    )
    (written,) = (project.path / "out").glob("*.json")
    assert json.loads(written.read_text())["injected"] == ["tpot:+50%"]
    assert not list((project.path / ".llmperf" / "runs").glob(f"{written_run(written)}.jsonl"))


@pytest.mark.parametrize(
    "injection", ["operators_per_token:+1%", "decode_peak_allocated:+9999%", "kv_cache:+99999999%", "weights:+99999%"]
)
def test_every_gating_metric_can_be_injected(project, injection):
    """Exact metrics turn red by injection as well."""
    project.write()
    project.record(1.0)
    assert project.run(f"--llmperf-inject={injection}").ret == 1


def test_a_metric_that_does_not_gate_is_told_and_does_not_fail(project):
    """TTFT explains; the test that wants it to gate says so."""
    project.write()
    project.record(*QUIET_MACHINE)
    result = project.run("--llmperf-inject=ttft:+50%")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["regressed, does not gate: *TTFT ×*"])
    assert project.run("--llmperf-inject=ttft:+50%", "--llmperf-gate=ttft").ret == 1


def test_the_marker_decides_over_the_command_line_and_that_over_the_ini(project):
    """One order of precedence, shown on what gates."""
    project.write("""
        import pytest

        @pytest.mark.llmperf(gate="none")
        @pytest.mark.parametrize("llm", ["fp32"], indirect=True)
        def test_marked(llm, llmperf):
            llmperf.generate(llm)

        @pytest.mark.parametrize("llm", ["fp32"], indirect=True)
        def test_plain(llm, llmperf):
            llmperf.generate(llm)
    """)
    project.record(*QUIET_MACHINE)
    project.pytester.makeini("[pytest]\nllmperf_gate = ttft\n")
    slow = "--llmperf-inject=tpot:+90%"
    project.run(slow).assert_outcomes(passed=2)
    project.run(slow, "--llmperf-gate=tpot").assert_outcomes(passed=1, failed=1)


def test_a_rule_for_some_tests_widens_their_tolerance(project):
    """``llmperf_limits`` is keyed by a pattern of the test's name."""
    project.write()
    project.record(*QUIET_MACHINE)
    project.pytester.makeini("[pytest]\nllmperf_limits =\n  test_dec.*fp32 => tolerate=tpot:80%\n")
    assert project.run(step_ms=1.5).ret == 0
    project.pytester.makeini("[pytest]\nllmperf_limits =\n  test_other => tolerate=tpot:80%\n")
    assert project.run(step_ms=1.5).ret == 1


def test_a_test_that_measures_nothing_is_told_on(project):
    """A perf test that passes without measuring must not look verified."""
    project.write("def test_nothing(llmperf): pass")
    result = project.run()
    result.stdout.fnmatch_lines(["invalid: test_perf.py::test_nothing: *measured nothing*", "*Nothing was verified*"])


def test_measuring_code_that_raises_is_an_error_verdict(project):
    """The others go on, and the summary counts it."""
    project.write(
        """
        import pytest

        @pytest.mark.parametrize("llm", ["fp32"], indirect=True)
        @pytest.mark.parametrize("tokens", [4, 10**6])
        def test_decode(llm, llmperf, tokens):
            llmperf.generate(llm, output_tokens=tokens)
        """
    )
    result = project.run()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["error: *4 input and 1000000 output tokens exceed *", "*1 error*"])


def test_measuring_one_workload_twice_in_a_test_is_refused(project):
    """Two figures under one key would hide one of them."""
    project.write("""
        import pytest

        @pytest.mark.parametrize("llm", ["fp32"], indirect=True)
        def test_twice(llm, llmperf):
            llmperf.generate(llm)
            llmperf.generate(llm)
    """)
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*measured one workload twice*"])


def test_a_missing_test_of_the_baseline_is_told(project):
    """A perf test that disappeared does not pass unseen."""
    project.write()
    project.record(1.0)
    project.write(project.pytester.path.joinpath("test_perf.py").read_text().replace("test_decode", "test_renamed"))
    result = project.run()
    result.stdout.fnmatch_lines(
        ["missing: 1 test of the baseline, *test_decode[[]fp32[]]. *on purpose: llmperf prune 'test_perf.py::*"]
    )


def test_what_cannot_be_measured_has_a_reason(project):
    """``None``, never 0, and the reason stands beside it."""
    project.write()
    project.record(1.0)
    cells = {cell["metric"]: cell for cell in json.loads(project.baseline().read_text())["cells"]}
    assert cells["decode_peak_reserved_bytes"]["value"] is None
    assert "no memory pool" in cells["decode_peak_reserved_bytes"]["reason"]
    assert cells["decode_peak_allocated_bytes"]["value"] > 0
    assert not {"itl_p95_ms", "itl_p99_ms"} & set(cells), "tails need more requests than two"


def test_one_output_token_has_no_tpot(project):
    """There is no decode to time, and that is said."""
    project.write()
    result = project.run("--llmperf-output-tokens=1", "--llmperf-update")
    assert result.ret == 0
    cells = {cell["metric"]: cell for cell in json.loads(project.baseline().read_text())["cells"]}
    assert "no decode" in cells["tpot_ms"]["reason"]
    assert cells["ttft_ms"]["value"] > 0
