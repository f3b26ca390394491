"""File with the numbers of requests of some tests, which one process of ours gives to another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class RequestCounts(BaseModel):
    """Numbers of requests of one test; ``None`` for the test's own."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    timed: int | None = Field(default=None, ge=1)
    warmup: int | None = Field(default=None, ge=0)
    """Most warm-up requests."""


_FILE = TypeAdapter(Mapping[str, RequestCounts])


def write_requests_by_test(path: Path, counts: Mapping[str, RequestCounts]) -> None:
    """Write the file, with tests by their names in baselines."""
    path.write_bytes(_FILE.dump_json(counts, exclude_none=True))


def read_requests_by_test(path: Path) -> Mapping[str, RequestCounts]:
    """Read the file.

    Raises:
        OSError: it cannot be read.
        ValueError: it has another form.
    """
    return _FILE.validate_json(path.read_bytes())
