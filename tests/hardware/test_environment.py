"""The recorded environment, and session ids."""

from __future__ import annotations

from importlib.metadata import version

from pytest_llmperf.hardware.environment import device_key, environment, session_id
from pytest_llmperf.storage.comparability import FIELDS


def test_the_environment_has_the_known_fields():
    """Each recorded field has a weight."""
    found = environment("cpu")
    assert set(found) <= set(FIELDS)
    assert found["torch"] == version("torch")
    assert device_key(found).startswith("cpu-")


def test_a_session_is_a_boot_a_day_and_a_ci_job(monkeypatch):
    """Runs of one session are not independent."""
    for name in ("GITHUB_RUN_ID", "CI_JOB_ID", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    assert session_id("2026-01-01") == session_id("2026-01-01") != session_id("2026-01-02")
    plain = session_id("2026-01-01")
    monkeypatch.setenv("GITHUB_RUN_ID", "7")
    assert session_id("2026-01-01") != plain
