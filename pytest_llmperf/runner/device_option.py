"""The option ``--device``, which other plugins and conftests define too."""

from __future__ import annotations

import argparse
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_llmperf.errors import UsageError

if TYPE_CHECKING:
    import pytest

DEVICE = "--device"


def take_device_option(config: pytest.Config, parser: pytest.Parser, args: list[str]) -> None:
    """Take ``--device`` out of the arguments, unless another plugin or a conftest declares it.

    It is declared only where help is requested, because a conftest that is loaded later may declare it. If one already
    has, users pass ``--llmperf-device``.
    """
    if config.known_args_namespace.help:
        add_device_option(parser)
    elif _is_unclaimed(parser, args):
        devices, rest = _without_device(args)
        if devices:
            config.option.llmperf_short_device = devices[-1]
            args[:] = rest
        else:  # it is in an @file of arguments, which only the parser reads
            add_device_option(parser)


def add_device_option(parser: pytest.Parser) -> None:
    """Declare ``--device``, unless another plugin or a conftest has done so."""
    group = parser.getgroup("llmperf")
    with suppress(ValueError, argparse.ArgumentError):
        group.addoption(DEVICE, dest="llmperf_short_device", metavar="DEVICE", default=None,
                        help="The same as --llmperf-device, unless another plugin defines --device")  # fmt: skip


def _is_unclaimed(parser: pytest.Parser, args: list[str]) -> bool:
    _, unknown = parser.parse_known_and_unknown_args(args)
    return any(word.partition("=")[0] == DEVICE for word in unknown)


def _without_device(args: list[str]) -> tuple[list[str], list[str]]:
    """Return the named devices and the other arguments. Words after ``--`` are not options."""
    end = args.index("--") if "--" in args else len(args)
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    own.add_argument(DEVICE, action="append", default=[])
    try:
        found, rest = own.parse_known_args(args[:end])
    except argparse.ArgumentError as error:
        raise UsageError(f"{DEVICE}: {error.message}") from error
    return found.device, [*rest, *args[end:]]
