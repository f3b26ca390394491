"""A process that imports libraries once and forks itself for each request of a `stand_in`.

Run as ``python server.py ADDRESS``; it ends with its standard input.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from _pytest.config import default_plugins

PREPARED = (
    "torch", "torch._dynamo", "torch._inductor.compile_fx", "torch.profiler", "torch.utils.flop_counter",
    "transformers.generation", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama",
    "bitsandbytes", "accelerate", "psutil", "pydantic.main", "pydantic.root_model", "pytest", "safetensors.torch",
    "rich.console", "rich.table", "xdist.plugin", "execnet", "pytest_benchmark.plugin", "anyio.pytest_plugin",
    "_hypothesis_pytestplugin", "hypothesis.internal.observability",
    *(f"_pytest.{name}" for name in default_plugins),
    "pytest_llmperf.cli", "pytest_llmperf.plugin", "pytest_llmperf.runner.session",
    "pytest_llmperf.measure.bench", "pytest_llmperf.report.terminal",
)  # fmt: skip
SEEN_BY_IMPORTS = (
    "ACCELERATE", "BNB", "CUBLAS", "CUDA", "GOMP", "HF", "KMP", "LANG", "LC", "LD", "MALLOC", "MKL", "NVIDIA", "OMP",
    "OPENBLAS", "PYTHON", "PYTORCH", "TORCH", "TRANSFORMERS", "TRITON",
)  # fmt: skip
"""Beginnings of the names of variables that Python or a library reads once."""
READ_LATER = ("PYTHONPATH", "TORCHINDUCTOR_CACHE_DIR")
"""Of these, variables that forks use themselves. Torch sets one of them."""
PYTEST_PLUGINS = (
    "_hypothesis_globals", "_hypothesis_pytestplugin", "anyio", "hypothesis", "platformdirs", "pytest_benchmark",
    "pytest_llmperf", "xdist",
)  # fmt: skip
"""Packages with a plugin: pytest would warn that they are imported before their assertions can be rewritten."""
TASKS = Path("/proc/self/task")


def seen_by_imports(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that must have equal values in the server and a fork."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(SEEN_BY_IMPORTS) and name not in READ_LATER
    }


class Fork:
    """A process that was asked for."""

    def __init__(  # noqa: PLR0913  # what a process inherits
        self,
        streams: Sequence[int],
        *,
        python: str,
        arguments: list[str],
        cores: list[int],
        folder: str,
        environment: dict[str, str],
    ) -> None:
        self._streams = streams
        self._python = python
        self._arguments = arguments
        self._cores = cores
        self._folder = folder
        self._environment = environment

    def run(self, library_path: Sequence[str]) -> None:
        """Go on as ``python ARGUMENTS...``. The caller is at the end of the main module, as nothing runs after it."""
        os.setsid()
        os.sched_setaffinity(0, self._cores)
        self._take_streams()
        os.chdir(self._folder)
        os.environ.clear()
        os.environ.update(self._environment)
        tempfile.tempdir = None
        random.seed()
        own = [path for path in self._environment.get("PYTHONPATH", "").split(os.pathsep) if path]
        sys.path[:] = [*own, *library_path]
        importlib.invalidate_caches()
        if self._python != sys.executable:
            self._enter_environment()
            if not _finds_same_modules():
                # The imported libraries are not this environment's: the process starts anew, with the list of
                # arguments that its test gave, as its stand-in does for a server that does not fork.
                os.execv(self._python, [self._python, *self._arguments])  # noqa: S606  # a list: no shell reads it
        sys.orig_argv = [sys.executable, *self._arguments]
        sys.path.insert(0, self._own_folder)
        self._run_program()

    def _enter_environment(self) -> None:
        """Continue in the environment of another interpreter: what knows the server's is executed again."""
        sys.executable = self._python
        sys.prefix = sys.exec_prefix = str(Path(self._python).parent.parent)
        sys.path[:] = [path for path in sys.path if "-packages" not in path]
        for name in ("sysconfig", "site"):  # the same modules, which others have imported
            importlib.reload(sys.modules[name])

    @property
    def _own_folder(self) -> str:
        """What Python puts first into its path: the working directory, or a script's folder."""
        first = self._arguments[0]
        return self._folder if first.startswith("-") else str(Path(first).parent)

    def _run_program(self) -> None:
        first, *rest = self._arguments
        if first == "-u":  # -c CODE: a worker of xdist
            sys.argv = ["-c"]
            exec(rest[1], vars(sys.modules["__main__"]))  # noqa: S102  # as Python does
        elif first.startswith("-m"):
            module, *rest = [first[2:], *rest] if first[2:] else rest
            sys.argv = ["-m", *rest]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            sys.argv = self._arguments
            runpy.run_path(first, run_name="__main__")

    def _take_streams(self) -> None:
        for own, theirs in enumerate(self._streams):
            os.dup2(theirs, own)
            os.close(theirs)
        # New objects: those of the server know whether its own streams can seek.
        opened = partial(open, closefd=False)
        sys.stdin = sys.__stdin__ = opened(0)
        sys.stdout = sys.__stdout__ = opened(1, "w", buffering=1 if os.isatty(1) else -1)
        sys.stderr = sys.__stderr__ = opened(2, "w", buffering=1, errors="backslashreplace")


def _finds_same_modules() -> bool:
    """Whether an import would find each module where the server found it."""
    specs = [module.__spec__ for name, module in sys.modules.items() if "." not in name and name != "__main__"]
    libraries = [spec for spec in specs if spec and spec.has_location and "." not in spec.name]
    return all(_origin(spec.name) == spec.origin for spec in libraries)


def _origin(name: str) -> str | None:
    found = (finder.find_spec(name, None) for finder in sys.meta_path)
    return next((spec.origin for spec in found if spec), None)


class Server:
    """Forks a process for each request, reports its end, and kills it when its stand-in has ended.

    Args:
        listener: where stand-ins connect.
        environment: the variables that libraries saw when they were imported.
    """

    def __init__(self, listener: socket.socket, environment: Mapping[str, str]) -> None:
        self._listener = listener
        self._environment = environment
        self._ended, self._wake_up = socket.socketpair()
        self._forks: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        for end in (self._ended, self._wake_up):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wake_up.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._watch(listener, self._accept)
        self._watch(self._ended, self._reap)
        self._watch(sys.stdin, self._stop)

    def serve(self) -> Fork:
        """Serve until standard input ends. Only forks return from here."""
        while True:
            for key, _ in self._selector.select():
                if fork := key.data():
                    return fork

    def _watch(self, source: object, serve: Callable[[], Fork | None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, serve)

    def _accept(self) -> Fork | None:
        stand_in, _ = self._listener.accept()
        data, streams, _, _ = socket.recv_fds(stand_in, 1 << 16, 3)
        while data and not data.endswith(b"\n"):
            data += stand_in.recv(1 << 16)
        request = json.loads(data or "null")
        pid = 0
        if request and self._can_fork(request["environment"]):
            pid = os.fork()
            if not pid:
                self._leave()
                stand_in.close()
                return Fork(streams, **request)
            self._forks[pid] = stand_in
            self._watch(stand_in, lambda: self._abandon(pid))
        for stream in streams:
            os.close(stream)
        with suppress(OSError):
            stand_in.sendall(b"%d\n" % pid)
        if not pid:
            stand_in.close()
        return None

    def _can_fork(self, environment: Mapping[str, str]) -> bool:
        """Whether this environment is as ours to libraries; a process with several threads must not fork."""
        alike = seen_by_imports(environment) == self._environment
        return alike and not environment.get("PLAIN_PYTHON") and len(list(TASKS.iterdir())) == 1

    def _leave(self) -> None:
        """Close in a fork what is the server's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for end in (self._listener, self._ended, self._wake_up, *self._forks.values()):
            end.close()

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            self._ended.recv(1 << 10)
        for pid, stand_in in list(self._forks.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                with suppress(OSError):
                    stand_in.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
                self._forget(pid)
                stand_in.close()

    def _abandon(self, pid: int) -> None:
        """Kill a fork whose stand-in was killed."""
        if pid in self._forks:
            self._kill(pid)
            self._selector.unregister(self._forks[pid])

    def _forget(self, pid: int) -> None:
        with suppress(KeyError):
            self._selector.unregister(self._forks[pid])
        del self._forks[pid]

    def _kill(self, pid: int) -> None:
        """Kill a fork and its descendants."""
        import psutil

        with suppress(psutil.Error):
            process = psutil.Process(pid)
            for one in (*process.children(recursive=True), process):
                with suppress(psutil.Error):
                    one.kill()

    def _stop(self) -> None:
        if not os.read(0, 1):
            for pid in self._forks:
                self._kill(pid)
            os._exit(0)


def _import_libraries() -> None:
    for name in PREPARED:
        with suppress(ImportError):
            importlib.import_module(name)
    with suppress(ImportError):
        _do_what_each_process_does_once()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in PYTEST_PLUGINS:
            module.__doc__ = f"{module.__doc__} PYTEST_DONT_REWRITE"
    gc.collect()
    gc.freeze()  # a collection in a fork would copy the memory of all of them


def _do_what_each_process_does_once() -> None:
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from pytest_llmperf.measure.peaks import spare_bandwidth

    get_checkpoint_conversion_mapping("llama")  # compiles a thousand expressions for all kinds of models
    spare_bandwidth("cpu")  # copies for half a second


def _main(address: str) -> None:
    path = sys.path[1:]  # this folder comes first
    library_path = [one for one in path if one not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address.replace("@", "\0", 1))
    listener.listen(64)
    os.write(1, b"\n")  # stand-ins can connect, and wait for the imports
    environment = seen_by_imports(os.environ)  # some libraries add to it
    _import_libraries()
    from forking_popen import ask_server  # from this folder

    sys.modules.pop("forking_popen")
    ask_server(address)
    fork = Server(listener, environment).serve()
    fork.run(library_path)


if __name__ == "__main__":
    _main(sys.argv[1])
