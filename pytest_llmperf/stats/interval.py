"""A confidence interval, without scipy: a plain pytest run imports what refers to it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A two-sided confidence interval of the ratio now / baseline."""

    low: float
    high: float
    level: float
