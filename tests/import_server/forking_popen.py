"""Make `subprocess` start tests' processes as forks of the server."""

from __future__ import annotations

import atexit
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PROGRAMS = ("pytest", "pytest_llmperf", "llmperf")
"""Modules, and scripts beside the interpreter, that run in a fork."""
XDIST_WORKER = ["-u", "-c", "import sys;exec(eval(sys.stdin.readline()))"]
OF_ALL_WORKERS = "TESTS_IMPORT_SERVER"
"""Environment variable with the address of the server of the process that started the workers."""
PLAIN_OPTIONS = ("executable", "pass_fds", "preexec_fn", "shell")
"""Options of `subprocess.Popen` with which a process starts plainly."""

_Popen = subprocess.Popen
_servers: list[Callable[[], str]] = []
"""The address of this process's server, if there is one."""


def start_for_workers() -> None:
    """Start a server at once. This process's workers of xdist are forks of it, and inherit its address."""
    if sys.platform == "linux":
        os.environ[OF_ALL_WORKERS] = _started_once()()
        ask_server(os.environ[OF_ALL_WORKERS])


def start_on_demand() -> None:
    """Ask the server of all workers; without one, start one when the first process asks for it."""
    if sys.platform == "linux":
        address = os.environ.get(OF_ALL_WORKERS)
        _servers.append((lambda: address) if address else _started_once())
        _replace_popen(_servers[0])


@cache
def shell_programs() -> str:
    """A folder for the ``PATH`` of a shell, whose programs run in forks; empty where there is no server."""
    if not _servers:
        return ""
    folder = tempfile.mkdtemp(prefix="programs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for program in Path(sys.executable).parent.iterdir():
        if program.name in PROGRAMS:
            script = Path(folder, program.name)
            script.write_text(f'#!/bin/sh\nexec {shlex.join(_stand_in(_servers[0](), str(program)))} "$@"\n')
            script.chmod(0o755)
    return folder


def ask_server(address: str) -> None:
    """Ask the server at this address."""
    _replace_popen(lambda: address)


def _replace_popen(address: Callable[[], str]) -> None:
    class ForkingPopen(_Popen):
        def __init__(self, args: Any, *more: Any, **options: Any) -> None:
            command = None if more or any(map(options.get, PLAIN_OPTIONS)) else _command(args)
            if command:
                python, *arguments = command
                super().__init__(_stand_in(address(), *arguments, python=python), **options)
                self.args = args
            else:
                super().__init__(args, *more, **options)

    subprocess.Popen = ForkingPopen  # type: ignore[misc]


def _stand_in(address: str, *arguments: str, python: str = sys.executable) -> list[str]:
    return [python, "-I", "-S", str(HERE / "stand_in.py"), address, *arguments]


def _command(args: Any) -> list[str] | None:
    """An interpreter like the server's, and its arguments, if this command runs one of the programs."""
    if isinstance(args, str | bytes) or not isinstance(args, Sequence):
        return None
    first, *rest = map(str, args)
    if rest and rest[0].startswith("-m") and _is_this_python(first):
        module = rest[0][2:] or rest[1]
        return [first, *rest] if module.partition(".")[0] in PROGRAMS else None
    if first == sys.executable and rest == XDIST_WORKER:
        return [first, *rest]
    if Path(first).parent == Path(sys.executable).parent and Path(first).name in PROGRAMS:
        return [sys.executable, first, *rest]
    return None


def _is_this_python(python: str) -> bool:
    """Whether this is the server's interpreter, perhaps in another environment: a fork looks what that one has."""
    return os.path.realpath(python) == os.path.realpath(sys.executable)


def _started_once() -> Callable[[], str]:
    started: list[str] = []
    environment = dict(os.environ)  # without the variables of the test that asks first

    def address() -> str:
        if not started:
            started.append(_start(environment))
        return started[0]

    return address


def _start(environment: Mapping[str, str]) -> str:
    address = f"@llmperf-tests-{os.getpid()}-{secrets.token_hex(4)}"
    server = _Popen(
        [sys.executable, str(HERE / "server.py"), address],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert server.stdin
    assert server.stdout
    server.stdout.readline()  # it listens now, and imports
    atexit.register(server.stdin.close)
    return address
