# PYTHON_ARGCOMPLETE_OK
"""The ``llmperf`` command: argument parser, dispatch and exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from io import TextIOWrapper
from typing import NoReturn

from pytest_llmperf.cli import ab, baselines, doctor_command, report
from pytest_llmperf.errors import LlmperfError, UsageError
from pytest_llmperf.system.run_processes import begin_run

USAGE_ERROR = 4
"""Exit code of an invalid option or an unusable file, the same as pytest's."""

INTERRUPTED = 2

FIRST_STEPS = """\
first steps:
  llmperf doctor                      what this machine can measure
  llmperf record --runs 5             measure five times, into baselines/: commit it
  pytest --llmperf                    measure once more and compare; a regression fails its test
  pytest --llmperf --llmperf-inject 'work:+15%'
                                      check that a regression fails your tests
  llmperf gate                        in a pull request: compare, then decide possible regressions by A/B runs
  llmperf bisect GOOD BAD             find the commit that made a test slower or bigger
  llmperf accept TEST --reason WHY    accept a change of level: compare with later runs only

Exit codes: 0; pytest's own (1 for a regression); 2 if interrupted; 4 for a wrong option or an unusable file.
Shell completion, as for pytest: pip install argcomplete; eval "$(register-python-argcomplete llmperf)"
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, pytest's, 2 if interrupted, or 4 for what the user must fix."""
    _escape_what_cannot_be_written()
    begin_run()
    parser = _parser()
    _complete(parser)
    own, rest = _split(list(sys.argv[1:] if arguments is None else arguments))
    options, more = parser.parse_known_args(own)
    try:
        if options.passes_on == "all":
            rest = [*more, *rest]
        elif more or (rest and not options.passes_on):
            unexpected, command = next(iter([*more, *rest])), f"llmperf {options.command}"
            raise UsageError(f"{command}: unexpected {unexpected!r}; see {command} --help")
        code: int = options.run(options, rest)
    except LlmperfError as error:
        print(f"llmperf: {error}", file=sys.stderr)  # noqa: T201  # a command prints
        return USAGE_ERROR
    except OSError as error:  # such as a full disk
        print(f"llmperf: {error.filename or 'system error'}: {error.strerror or error}", file=sys.stderr)  # noqa: T201  # same
        return USAGE_ERROR
    except KeyboardInterrupt:
        goes_on = "" if options.command == "selftest" else "; run the same command again to continue"
        print(f"llmperf: interrupted{goes_on}", file=sys.stderr)  # noqa: T201  # same
        return INTERRUPTED
    return code


class Parser(argparse.ArgumentParser):
    """Exits with pytest's code for usage errors; argparse's own code, 2, means interrupted in pytest."""

    def error(self, message: str) -> NoReturn:
        """Print the message below the usage."""
        self.print_usage(sys.stderr)
        self.exit(USAGE_ERROR, f"{self.prog}: error: {message}\n")


def _escape_what_cannot_be_written() -> None:
    """Escape unencodable characters: ``×`` must not end a command, least of all with a regression's exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell's completion request, as pytest does."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split our own arguments from pytest's, which follow ``--``."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:cut], arguments[cut + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="llmperf",
        description="Performance regression testing of LLM inference.",
        epilog=FIRST_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version("pytest-llmperf"))
    parser.set_defaults(passes_on=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for part in (ab, report, baselines, doctor_command):
        part.add_commands(commands)
    return parser
