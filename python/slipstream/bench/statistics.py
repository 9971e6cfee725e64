"""Percentiles of measured times."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Of one quantity over many requests, in its own unit."""

    mean: float
    p50: float
    p90: float
    p99: float


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the ascending values lie, with linear interpolation between neighbours.

    Definition 7 of Hyndman and Fan (1996), which numpy.percentile uses by default.
    """
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarize(values: Sequence[float]) -> Summary | None:
    """None where nothing was measured."""
    if not values:
        return None
    ordered = sorted(values)
    return Summary(math.fsum(ordered) / len(ordered), *(percentile(ordered, percent) for percent in (50, 90, 99)))
