"""Storage of operator profiles beside a baseline."""

from __future__ import annotations

import pytest

from pytest_llmperf.errors import BaselineError
from pytest_llmperf.storage.profiles import comparable, keep_profiles, load_profiles, profiles_path, run_of
from pytest_llmperf.storage.schema import OperatorTime, PhaseProfile, Run

OURS, GONE = ("test", "aaaa"), ("gone", "bbbb")


def run(name, **environment):
    return Run(run_id=name, session_id="s", time=f"2026-01-0{name}", commit=f"c{name}", dirty=False,
               environment={"torch": "2.13", **environment})  # fmt: skip


def phases(ms):
    return {"decode": PhaseProfile(wall_ms=ms, operators=[OperatorTime(name="aten::mm", self_ms=ms, calls=15.0)])}


@pytest.fixture
def path(tmp_path):
    return profiles_path(tmp_path, "cpu")


def test_the_latest_profile_of_each_workload_of_the_baseline_is_kept(path):
    """Its run is kept with it; profiles of removed workloads and runs without profiles are dropped."""
    keep_profiles(path, "cpu", run("1"), {OURS: phases(1.0), GONE: phases(1.0)}, of={OURS, GONE})
    keep_profiles(path, "cpu", run("2"), {OURS: phases(2.0)}, of={OURS})
    file = load_profiles(path)
    assert [one.key for one in file.profiles] == [OURS]
    assert [one.run_id for one in file.runs] == ["2"]
    assert run_of(file, OURS).commit == "c2"
    assert run_of(file, GONE) is None
    assert comparable(file, run("3").environment) == {OURS: phases(2.0)}
    assert len(path.read_text().splitlines()) == 10


def test_a_profile_of_another_environment_is_not_compared(path):
    """The same fields block as for figures."""
    keep_profiles(path, "cpu", run("1"), {OURS: phases(1.0)}, of={OURS})
    assert comparable(load_profiles(path), run("2", torch="2.14").environment) == {}
    assert comparable(load_profiles(path), run("2", host="another").environment)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "Invalid JSON"), ("{}", "device_key: Field required"), ('{"device_key": "cpu", "x": 1}', "x: Extra inputs")],
)
def test_another_file_is_told_from_one(path, text, message):
    """An invalid file is an error that says what to do; a missing file is ``None``."""
    assert load_profiles(path) is None
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(BaselineError, match=f"cpu.json: {message}.*Delete it"):
        load_profiles(path)
