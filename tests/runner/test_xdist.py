"""One xdist worker per device: which device measures which test, how results are collected, and what is refused.

The two devices are faked: torch reports two, and the CPU stands for each. The recorded environment shows which device a
process was given.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from perf_project import FAKE_CLOCK

from pytest_llmperf.runner.xdist import Controller, ModelScheduling
from pytest_llmperf.storage.baseline_file import load_baseline
from pytest_llmperf.system.pytest_process import _pinned_to
from pytest_llmperf.verdict.outcome import RunOutcome

TWO_DEVICES = """
import pytest_llmperf.hardware.device as device
from pytest_llmperf.measure.bench import Bench

given = []
device._count = lambda kind: 2
bench.resolve_device = lambda name, **_: given.append(name) or "cpu"
real = Bench.environment
Bench.environment = lambda bench: real(bench) | {"device_uuid": given[-1]}
"""

TWO_MODELS = """
import pytest

@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("llm", ["fp32", "bf16"], indirect=True)
def test_decode(llm, llmperf, batch_size):
    llmperf.generate(llm, batch_size=batch_size)
"""

ONE_KILLS = """
import os
import pathlib
import time
import pytest

OTHER_ENDS = pathlib.Path(__file__).with_name("other_ends")
"A worker begins its last test when it is told that it gets no more: none of the other model's."

@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("llm", ["fp32", "bf16"], indirect=True)
def test_decode(llm, llmperf, number):
    if number == 3 and llm.spec.quantization == "fp32":
        OTHER_ENDS.touch()
    if number == 2 and llm.spec.quantization == "bf16":
        for _ in range(600):  # at most a minute, in case the other model never starts
            if OTHER_ENDS.exists():
                break
            time.sleep(0.1)  # a file is all that two workers share
        os.kill(os.getpid(), 9)
    llmperf.generate(llm)
"""

ON_BOTH = ("--device=cuda", "-n2")


def devices_of(path):
    """Return each run's device and tests."""
    stored = load_baseline(path)
    tests = {run.run_id: {cell.test for cell in stored.cells if cell.run == run.run_id} for run in stored.runs}
    return [(run.environment["device_uuid"], tests[run.run_id]) for run in stored.runs]


@pytest.fixture
def two_devices(project):
    project.write(TWO_MODELS, conftest=FAKE_CLOCK + TWO_DEVICES)
    return project


def test_each_worker_is_a_run_on_a_device_of_its_own(two_devices):
    """Each model goes to one worker; the baseline gets two runs of one session, and each has a journal."""
    result = two_devices.run(*ON_BOTH, "--llmperf-update")
    assert result.ret == 0, result.outlines
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        ["llmperf: one worker on each of cuda:0, cuda:1", "baseline updated: * holds 2 runs of 1 session"]
    )
    models = [{f"test_perf.py::test_decode[{model}-{size}]" for size in (1, 2)} for model in ("fp32", "bf16")]
    found = sorted(devices_of(two_devices.baseline()))
    assert [device for device, _ in found] == ["cuda:0", "cuda:1"]
    assert sorted(map(sorted, (tests for _, tests in found))) == sorted(map(sorted, models))
    journals = (two_devices.path / ".llmperf" / "runs").glob("*.jsonl")
    assert sorted(entry for path in journals for entry in devices_of(path)) == found


def test_fresh_runs_stay_on_their_workers_device(two_devices):
    """Possible regressions on two devices are confirmed on the device that measured them."""
    two_devices.write(TWO_MODELS.replace("[1, 2]", "[1]"), conftest=FAKE_CLOCK + TWO_DEVICES)
    two_devices.record(1.0, 1.01, 0.99, 1.0, 1.005)
    result = two_devices.run(*ON_BOTH, "--llmperf-confirm=1", step_ms=1.5)
    assert result.ret == 1
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["TPOT ×1.* [[]*[]]: 1.50 ms > 1.00 ms baseline, *; runs now: 1.50 ms, 1.50 ms)"])
    runs = two_devices.path / ".llmperf"
    first = {path.stem: devices_of(path) for path in (runs / "runs").glob("*.jsonl")}
    again = {path.parent.name: devices_of(path) for path in (runs / "confirm").glob("*/*.jsonl")}
    assert len(again) == 2
    assert again == {run: first[run] for run in again}


def test_a_worker_that_dies_is_replaced_on_its_device(two_devices):
    """The test that killed it fails once; a new run on the same device measures the model's other tests."""
    two_devices.write(ONE_KILLS, conftest=FAKE_CLOCK + TWO_DEVICES)
    result = two_devices.run(*ON_BOTH, "--llmperf-update")
    assert result.ret == 1
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["baseline NOT updated: a test failed; the results are in *.jsonl, *.jsonl*"])
    journals = [devices_of(path) for path in (two_devices.path / ".llmperf" / "runs").glob("*.jsonl")]
    of_model = [(device, test) for ((device, tests),) in journals for test in tests if "bf16" in test]
    assert sorted(test for _, test in of_model) == [f"test_perf.py::test_decode[bf16-{number}]" for number in (1, 3)]
    assert len(journals) == 3
    assert len({device for device, _ in of_model}) == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--device=cuda", "-n3"], "3 workers for 2 devices (cuda:0, cuda:1); *: use -n2"),
        (["--device=cuda:1", "-n2"], "2 workers for one device (cuda:1); *: use -n1"),
        (["--device=cuda", "--dist=load", "--tx=3*popen"], "3 workers for 2 devices *"),
        (["--device=cuda", "-n2", "--llmperf-journal=one.jsonl"], "one file for 2 workers; *"),
        (["--device=cuda:1,cuda:2", "-n2"], "device 'cuda:2' is not available: *"),
        (["--device=cuda:0,xpu:1", "-n2"], "unknown device 'cuda:0,xpu:1': expected *cuda:0,cuda:2*"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_workers_that_do_not_fit_are_refused_at_once(two_devices, arguments, line):
    """One line, exit code 4, and no worker starts."""
    result = two_devices.run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *{line}"])
    assert "gw0" not in result.stdout.str()


def test_a_worker_that_dies_over_what_it_held_back_fails_the_run(project):
    """Its possible regressions were neither confirmed nor cleared, and xdist blames no test for the crash."""
    project.write()
    project.record(1.0, 1.01, 0.99, 1.0, 1.005)
    dies = "confirm.run_replica = lambda *_, **__: os.kill(os.getpid(), 9)\n"
    dying = f"\nfrom pytest_llmperf.runner import confirm\n{dies}"
    project.write(conftest=FAKE_CLOCK + dying)
    result = project.run("-n1", "--llmperf-confirm=1", "--llmperf-update", step_ms=1.5)
    assert result.ret == 1
    lines = [
        "baseline NOT updated: a worker died*",
        "failed: 1 test started and never reported: test_perf.py::*fp32[]]",
    ]
    result.stdout.fnmatch_lines(lines)


def test_a_refusal_that_only_a_worker_can_make_is_one_line_too(project):
    """Without our forwarding, xdist would report an internal error."""
    project.write()
    result = project.run("-n1", "--llmperf-model=./nowhere")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: model './nowhere' does not exist: *"])
    assert "INTERNALERROR" not in result.stderr.str() + result.stdout.str()


class FakeNode(SimpleNamespace):
    """A worker as its controller sees it, before and after its start."""

    def __init__(self, name: str) -> None:
        channel = SimpleNamespace(setcallback=lambda callback: setattr(self, "tell", callback))
        super().__init__(
            gateway=SimpleNamespace(id=name, newchannel=lambda: channel),
            config=SimpleNamespace(invocation_params=SimpleNamespace(args=["-n2"])),
            workerinput={},
            sent=[],
            shutting_down=False,
        )

    __hash__ = object.__hash__

    def send_runtest_some(self, indices) -> None:
        self.sent += indices

    def shutdown(self) -> None:
        self.shutting_down = True


@pytest.fixture
def controller():
    return Controller(["cuda:0", "cuda:2"], RunOutcome(compared=True))


def started(controller, name):
    node = FakeNode(name)
    controller.pytest_configure_node(node)
    return node


def told(**changes):
    return {"edited": "", "missing": [], "differences": [], "device_key": "h200", "models": {}} | changes


def test_a_replacement_gets_the_device_that_became_free(controller):
    """It never gets a device in use, even if xdist reports a worker twice; of two, it gets its predecessor's."""
    first, second = (started(controller, name) for name in ("gw0", "gw1"))
    assert [node.workerinput["llmperf_device"] for node in (first, second)] == ["cuda:0", "cuda:2"]
    for _ in range(2):
        controller.pytest_testnodedown(second)
    third = started(controller, "gw2")
    controller.pytest_testnodedown(first)
    controller.pytest_testnodedown(second)
    assert third.workerinput["llmperf_device"] == "cuda:2"
    controller.pytest_testnodedown(third)
    assert [started(controller, name).workerinput["llmperf_device"] for name in ("gw3", "gw4")] == ["cuda:2", "cuda:0"]


def test_what_workers_found_is_taken_in_once(controller):
    """Each device has its own differences; a worker without a perf test sends nothing."""
    differences = {"gw0": "device_uuid: 1 -> 2", "gw1": "driver: 3 -> 4"}
    for name, difference in differences.items():
        node = started(controller, name)
        node.tell(told(missing=["a"], differences=[difference]))
        controller.pytest_xdist_node_collection_finished(node)
    controller.pytest_testnodedown(node)
    controller.pytest_xdist_node_collection_finished(started(controller, "gw2"))
    assert controller._outcome.missing == ["a"]
    assert controller._outcome.differences == list(differences.values())


def test_workers_on_unlike_devices_are_refused(controller):
    """A baseline belongs to one device, and the scheduler chooses which device runs a test."""
    first, second = (started(controller, name) for name in ("gw0", "gw1"))
    first.tell(told())
    second.tell(told(device_key="a100"))
    controller.pytest_xdist_node_collection_finished(first)
    with pytest.raises(pytest.UsageError, match="cuda:0 is h200, cuda:2 is a100; expected devices of one kind"):
        controller.pytest_xdist_node_collection_finished(second)
    assert first.shutting_down
    assert second.shutting_down


@pytest.fixture
def scheduling(monkeypatch):
    """Scheduling of three models: one with three tests, two with one test each."""
    for name in ("parse_tx_spec_config", "parse_spec_config"):  # the second one before xdist 3.7
        monkeypatch.setattr(f"xdist.scheduler.loadscope.{name}", lambda config: ["popen"], raising=False)
    config, log = SimpleNamespace(option=SimpleNamespace(loadscopereorder=True)), SimpleNamespace(loadscopesched=print)
    return ModelScheduling(config, log, dict(zip(TESTS, "aaabc", strict=True)))


TESTS = ["a1", "a2", "a3", "b1", "c1"]


def joined(scheduling, name):
    node = FakeNode(name)
    scheduling.add_node(node)
    scheduling.add_node_collection(node, TESTS)
    scheduling.schedule()
    return node


def test_what_a_lost_worker_had_left_is_given_out_without_what_killed_it(scheduling):
    """The model's other tests are scheduled once; a worker without remaining tests loses nothing."""
    first = joined(scheduling, "gw0")
    assert first.sent == [0, 1, 2]
    scheduling.mark_test_complete(first, 0)
    assert scheduling.remove_node(first) == "a2"
    second = joined(scheduling, "gw1")
    for index in second.sent:  # grows as tests are done
        scheduling.mark_test_complete(second, index)
    assert sorted(second.sent) == [2, 3, 4]
    assert scheduling.remove_node(second) is None


def test_a_replacement_gets_two_tests_at_once(scheduling):
    """A worker starts a test only when it has the next one; with a single test, both sides would wait forever."""
    first = joined(scheduling, "gw0")
    for index in (0, 1):
        scheduling.mark_test_complete(first, index)
    assert scheduling.remove_node(first) == "a3"
    early = FakeNode("gw1")
    scheduling.add_node(early)
    second = joined(scheduling, "gw2")
    assert second.sent == [3, 4]
    assert early.sent == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"llmperf_short_device": "cuda"}, ["--device=cuda:1"]),
        ({"llmperf_device": "cuda"}, ["--llmperf-device=cuda:1"]),
        ({"llmperf_device": "cuda", "llmperf_short_device": "cuda"}, ["--device=cuda:1", "--llmperf-device=cuda:1"]),
        ({}, ["--llmperf-device=cuda:1"]),
    ],
    ids=["short", "long", "both", "ini"],
)
def test_a_fresh_process_is_pinned_by_the_option_that_was_given(given, expected):
    """``--device`` and ``--llmperf-device`` never contradict each other, whoever defines ``--device``."""
    assert _pinned_to(SimpleNamespace(getoption=given.get), "cuda:1") == expected
