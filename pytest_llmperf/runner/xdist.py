"""xdist workers: each measures on a device of its own, and the tests of a model all go to one of them.

The controller hands out devices and models. It gives no device work itself.
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
"""The name of a worker's way to tell the controller, in what xdist hands to it."""


class Controller:
    """Registered where xdist's workers are started.

    Args:
        devices: one for each worker.
        outcome: of the run; takes in what the workers found out about the baseline.
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
        """Say where the workers measure."""
        return f"llmperf workers: one each on {', '.join(self._devices)}"

    def pytest_configure_node(self, node: WorkerController) -> None:
        """Give a worker a device that no other has, and the run's arguments for the fresh processes that it starts.

        A worker that takes the place of a crashed one has another name, and gets the device that became free last.
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
        """A worker that is gone needs its device no more. xdist tells of some twice."""
        if node not in self._device_of:
            return
        self._free.append(self._device_of.pop(node))
        output = getattr(node, "workeroutput", {})
        if trouble := output.get(TROUBLE):
            self._outcome.troubles[trouble] = None
        self._outcome.dead = self._outcome.dead or output.get(DEAD, "")
        self._outcome.not_run = len(self._models.keys() - self._ended)

    def pytest_xdist_node_collection_finished(self, node: WorkerController) -> None:
        """Take in what a worker told when it had collected, before any test is given out."""
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
            self._refuse(f"workers on unlike devices: {found}; expected devices of one kind: name them with --device")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test began. xdist forgets it once its body is done, also where its reports are held back."""
        self._outcome.unreported[nodeid] = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Something came of a test."""
        self._outcome.unreported.pop(report.nodeid, None)
        self._ended.add(report.nodeid)

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Producer) -> LoadScopeScheduling:
        """Give out models, whatever ``--dist`` says."""
        return ModelScheduling(config, log, self._models)

    def _refuse(self, why: str) -> NoReturn:
        """End the run, and its workers with it: they wait for tests, and would have to be killed."""
        for node in self._device_of:
            node.shutdown()
        raise pytest.UsageError(why)


class ModelScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """The tests of one model are a unit of work, so that it is loaded once; those without a model are one as well.

    Args:
        config: of the controller.
        log: as xdist hands it out.
        models: by node id; filled when the workers have collected.
    """

    def __init__(self, config: pytest.Config, log: Producer, models: Mapping[str, str]) -> None:
        super().__init__(config, log)
        self._models = models

    def _split_scope(self, nodeid: str) -> str:
        return self._models[nodeid]

    def _reschedule(self, node: WorkerController) -> None:
        """Give a worker two tests to begin with, a replacement too: it waits with one until it has the next."""
        if node not in self.registered_collections:
            return
        super()._reschedule(node)
        if self.workqueue and self._pending_of(self.assigned_work[node]) < 2:  # noqa: PLR2004  # two, as told above
            super()._reschedule(node)

    def remove_node(self, node: WorkerController) -> str | None:
        """Give out what a lost worker had left, less the test that it died of: xdist would hand that to all in turn."""
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
    """Registered in a worker: tells the controller why it cannot go on, which xdist would take for a crash."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(wrapper=True)
    def pytest_collection_modifyitems(self) -> Generator[None, None, None]:
        """What is wrong with the tests or their baseline is known once they are collected."""
        try:
            yield
        except pytest.UsageError as error:
            tell_controller(self._config, {"refusal": str(error)})
            raise


def tell_controller(config: pytest.Config, found: Mapping[str, Any]) -> None:
    """Tell from a worker what the controller has to know before it gives out tests."""
    config.workerinput[CHANNEL].send(dict(found))  # type: ignore[attr-defined]  # xdist puts it there
