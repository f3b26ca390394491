"""What only a CUDA device can show. Skipped where there is none."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_the_matrix_is_measured_by_events_with_allocator_peaks(project):
    """Every configuration at two batch sizes: CUDA events, allocated and reserved peaks of every phase."""
    project.pytester.makeconftest("")
    result = project.pytester.runpytest_subprocess(
        "--llmperf", "--device=cuda", "--llmperf-model=synthetic:tiny", "--pyargs", "pytest_llmperf.suite",
        "--llmperf-quantization=bf16,fp16,nf4,nf4-dq,int8,int8-decomp", "--llmperf-batch-sizes=1,8",
        "--llmperf-execution=generate,loop", "--llmperf-update", "--llmperf-force-update",
    )  # fmt: skip
    assert result.ret == 0, result.outlines
    result.assert_outcomes(passed=24)
    stored = json.loads(project.baseline().read_text())
    assert {row["clock"] for row in stored["observations"]} == {"cuda events"}
    peaks = [cell for cell in stored["cells"] if cell["metric"].endswith(("allocated_bytes", "reserved_bytes"))]
    assert all(cell["value"] > 0 for cell in peaks)


def test_identical_runs_agree_on_every_exact_metric(project):
    """What is judged exactly must be exact on a GPU too."""
    arguments = (
        "--llmperf", "--device=cuda", "--llmperf-model=synthetic:tiny", "--llmperf-update", "--llmperf-force-update",
        "--llmperf-gate=operators_per_token,decode_peak_allocated,prefill_peak_allocated,weights,kv_cache",
    )  # fmt: skip
    project.write(conftest="")
    for _ in range(2):
        result = project.pytester.runpytest_subprocess(*arguments)
        assert result.ret == 0, result.outlines
    result.stdout.fnmatch_lines(["llmperf: 1 tests, 5 of 5 gating cells decided: 5 unchanged"])


def test_64_mib_on_the_device_are_seen_to_the_byte(project):
    """The allocator's peak, reset at the start of the block."""
    project.write(
        """
        import torch

        def test_block(peak_memory):
            with peak_memory() as nothing:
                pass
            with peak_memory() as peak:
                torch.zeros(64 << 20, dtype=torch.uint8, device="cuda")
            assert peak.allocated_bytes - nothing.allocated_bytes == 64 << 20
        """,
        conftest="",
    )
    project.pytester.runpytest_subprocess("--llmperf", "--device=cuda").assert_outcomes(passed=1)
