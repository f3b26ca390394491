"""xdist support: each worker measures on its own device, and all tests of a model go to one worker.

The controller assigns devices and models. It does no work on a device itself.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from pytest_llmperf.runner.ending import DEAD, TROUBLE
from pytest_llmperf.verdict.outcome import RunOutcome

CHANNEL = "llmperf_channel"
"""Key in ``workerinput`` of the channel from a worker to its controller."""


class Controller:
    """Assigns devices and models to workers; registered where xdist's workers are started.

    Args:
        devices: one per worker.
        outcome: of the run; receives the workers' findings about the baseline.
    """

    def __init__(self, devices: Sequence[str], outcome: RunOutcome) -> None:
        self._devices = devices
        self._free = list(reversed(devices))
        self._outcome = outcome
        self._device_of: dict[WorkerController, str] = {}
        self._told: dict[WorkerController, dict[str, Any]] = {}
        self._key_of: dict[str, str] = {}
        self._models: dict[str, str] = {}
        self._ended: set[str] = set()

    def pytest_report_header(self) -> str:
        """Show the workers' devices."""
        return f"llmperf: one worker on each of {', '.join(self._devices)}"

    def pytest_configure_node(self, node: WorkerController) -> None:
        """Assign a free device to a worker, and pass on the run's arguments for the subprocesses that it starts.

        A worker that replaces a crashed one has another name, and gets the device that was freed last.
        """
        self._device_of[node] = self._free.pop()
        channel = node.gateway.newchannel()
        channel.setcallback(partial(self._told.__setitem__, node))
        node.workerinput |= {
            "llmperf_device": self._device_of[node],
            "llmperf_arguments": [str(word) for word in node.config.invocation_params.args],
            CHANNEL: channel,
        }

    def pytest_testnodedown(self, node: WorkerController) -> None:
        """Free the device of a worker that is gone. xdist reports some workers twice."""
        if node not in self._device_of:
            return
        self._free.append(self._device_of.pop(node))
        output = getattr(node, "workeroutput", {})
        if trouble := output.get(TROUBLE):
            self._outcome.troubles[trouble] = None
        self._outcome.dead = self._outcome.dead or output.get(DEAD, "")
        self._outcome.not_run = len(self._models.keys() - self._ended)

    def pytest_xdist_node_collection_finished(self, node: WorkerController) -> None:
        """Process a worker's findings after its collection, before any test is scheduled."""
        told = self._told.get(node)
        if told is None:  # it has no perf test
            return
        if "refusal" in told:
            self._refuse(told["refusal"])
        self._outcome.take(told)
        self._models |= told["models"]
        self._key_of[self._device_of[node]] = told["device_key"]
        if len(set(self._key_of.values())) > 1:
            found = ", ".join(f"{device} is {key}" for device, key in self._key_of.items())
            self._refuse(
                f"workers on different devices: {found}; expected devices of one kind: name them with --device"
            )

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Record that a test started. xdist forgets it after its body, even if its reports are held back."""
        self._outcome.unreported[nodeid] = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record that a test was reported."""
        self._outcome.unreported.pop(report.nodeid, None)
        self._ended.add(report.nodeid)

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Producer) -> LoadScopeScheduling:
        """Schedule by model, whatever ``--dist`` says."""
        return ModelScheduling(config, log, self._models)

    def _refuse(self, why: str) -> NoReturn:
        """End the run and shut down its workers; they wait for tests, and would have to be killed."""
        for node in self._device_of:
            node.shutdown()
        raise pytest.UsageError(why)


class ModelScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Schedules all tests of a model as one unit of work, so that it is loaded once.

    Tests without a model are one unit as well.

    Args:
        config: of the controller.
        log: xdist's log producer.
        models: by node id; filled after the workers have collected.
    """

    def __init__(self, config: pytest.Config, log: Producer, models: Mapping[str, str]) -> None:
        super().__init__(config, log)
        self._models = models

    def _split_scope(self, nodeid: str) -> str:
        return self._models[nodeid]

    def _reschedule(self, node: WorkerController) -> None:
        """Give a worker, or its replacement, two tests to start with: it holds one until it has the next."""
        if node not in self.registered_collections:
            return
        super()._reschedule(node)
        if self.workqueue and self._pending_of(self.assigned_work[node]) < 2:  # noqa: PLR2004  # two, see the docstring
            super()._reschedule(node)

    def remove_node(self, node: WorkerController) -> str | None:
        """Reschedule a lost worker's tests, except the one that crashed it: xdist would give that to all in turn."""
        left = {model: {test: done for test, done in unit.items() if not done}
                for model, unit in self.assigned_work.pop(node).items()}  # fmt: skip
        crashed = next((test for unit in left.values() for test in unit), None)
        for unit in left.values():
            unit.pop(crashed, None)
        self.workqueue.update({model: unit for model, unit in left.items() if unit})
        for other in self.nodes if crashed else ():
            self._reschedule(other)
        return crashed


class Worker:
    """Sends usage errors to the controller, which xdist would take for a crash; registered in a worker."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(wrapper=True)
    def pytest_collection_modifyitems(self) -> Generator[None, None, None]:
        """Forward errors about the tests or their baseline, which are found after collection."""
        try:
            yield
        except pytest.UsageError as error:
            tell_controller(self._config, {"refusal": str(error)})
            raise


def tell_controller(config: pytest.Config, found: Mapping[str, Any]) -> None:
    """Send a worker's findings to the controller, which needs them before it schedules tests."""
    config.workerinput[CHANNEL].send(dict(found))  # type: ignore[attr-defined]  # set by xdist
