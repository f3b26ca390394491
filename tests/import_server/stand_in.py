"""A small process in the place of one that the server forks: run as ``python stand_in.py ADDRESS ARGUMENTS...``."""

import json
import os
import signal
import socket
import sys

STANDARD_STREAMS = (0, 1, 2)
PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
PLAIN = 0
"""Sent in place of a process id by a server that does not fork."""


def main(address: str, arguments: list[str]) -> None:
    """Run Python with these arguments in a fork of the server, and end as it does."""
    try:
        server = socket.socket(socket.AF_UNIX)
        server.connect(address.replace("@", "\0", 1))  # of Linux, without a file
        request = {
            "python": sys.executable, "arguments": arguments,
            "cores": sorted(os.sched_getaffinity(0)), "folder": os.getcwd(), "environment": dict(os.environ),  # noqa: PTH109
        }  # fmt: skip
        socket.send_fds(server, [json.dumps(request).encode() + b"\n"], STANDARD_STREAMS)
        answers = server.makefile("r")
        pid = int(answers.readline() or PLAIN)
    except OSError:  # the server has gone
        pid = PLAIN
    if pid == PLAIN:
        os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606  # no shell
    for number in PASSED_ON:
        signal.signal(number, lambda number, _frame: os.kill(pid, number))
    _end(int(answers.readline() or 1))


def _end(code: int) -> None:
    """End with an exit code, or by a signal if it is negative."""
    if code >= 0:
        os._exit(code)
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)


main(sys.argv[1], sys.argv[2:])
