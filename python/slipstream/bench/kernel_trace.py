"""Steps in the trace of a profiler.

A trace is a list of events in order of their start. Nothing in it says where a step begins, but steps of one shape run
the same kernels in the same order: the trace repeats itself, and its period is a step.
"""

import itertools
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slipstream.errors import SlipstreamError

GPU_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")  # of events in a Chrome trace that torch.profiler writes
_MIN_STEPS = 4  # that a trace must hold, to be sure of its period
_AGREEMENT = 0.995  # of kernels one period apart: copies on another stream may come a little earlier or later


@dataclass(frozen=True)
class GpuEvent:
    """One kernel, copy or fill; times are microseconds."""

    name: str
    start_us: float
    duration_us: float

    @property
    def end_us(self) -> float:
        return self.start_us + self.duration_us

    @property
    def is_kernel(self) -> bool:
        return not self.name.startswith(("Memcpy", "Memset"))


def gpu_events(trace: Mapping[str, Any]) -> list[GpuEvent]:
    """The events of a GPU in a Chrome trace, in order."""
    found = [
        GpuEvent(str(event["name"]), float(event["ts"]), float(event["dur"]))
        for event in trace["traceEvents"]
        if event.get("cat") in GPU_CATEGORIES
    ]
    return sorted(found, key=lambda event: event.start_us)


def gaps_us(events: Sequence[GpuEvent]) -> list[float]:
    """Times in which nothing runs, between the first and the last event; kernels may overlap.

    >>> gaps_us([GpuEvent("a", 0, 10), GpuEvent("b", 2, 3), GpuEvent("c", 12, 1)])
    [2.0]
    """
    gaps, end_us = [], events[0].end_us
    for event in events[1:]:
        if event.start_us > end_us:
            gaps.append(float(event.start_us - end_us))
        end_us = max(end_us, event.end_us)
    return gaps


def split_steps(events: Sequence[GpuEvent], first_kernel: str | None = None) -> list[list[GpuEvent]]:
    """The steps of the part of a trace that repeats itself, the last one incomplete perhaps. See profile_steps()."""
    kernels = [index for index, event in enumerate(events) if event.is_kernel]
    names = [events[index].name for index in kernels]
    if not names:
        raise SlipstreamError("the trace holds no kernel: was a GPU used, and does the profiler see it?")
    if first_kernel is not None:
        starts = [index for index, name in zip(kernels, names, strict=True) if re.search(first_kernel, name)]
        if len(starts) <= _MIN_STEPS:
            raise SlipstreamError(f"only {len(starts)} kernels have a name in which {first_kernel!r} is found")
        starts = _regular(starts)
    else:
        codes = np.unique(np.array(names), return_inverse=True)[1]
        period = find_period(codes)
        if period is None:
            raise SlipstreamError("the trace does not repeat itself: profile more steps, all of one shape")
        begin, end = _steady(codes, period)
        offset = _largest_gap([events[index] for index in kernels[begin:end]], period)
        starts = kernels[begin + offset : end : period]
    return [list(events[start:end]) for start, end in zip(starts, [*starts[1:], starts[-1] + 1], strict=True)]


def find_period(codes: npt.NDArray[Any]) -> int | None:
    """The shortest distance at which the middle half of a sequence repeats itself; None: it does not.

    Layers repeat themselves too, but not across the end of a step, and the middle half has several of these.
    """
    middle = codes[len(codes) // 4 : len(codes) - len(codes) // 4]
    for period in range(1, len(middle) // (_MIN_STEPS // 2) + 1):
        if np.mean(middle[period:] == middle[:-period]) >= _AGREEMENT:
            return period
    return None


def _steady(codes: npt.NDArray[Any], period: int) -> tuple[int, int]:
    """[begin, end) of the stretch around the middle that repeats itself: what comes before and after is left out."""
    same = codes[period:] == codes[:-period]
    blocks = len(same) // period
    agrees = [bool(np.mean(same[i * period : (i + 1) * period]) >= _AGREEMENT) for i in range(blocks)]
    first = last = blocks // 2
    while first > 0 and agrees[first - 1]:
        first -= 1
    while last < blocks and agrees[last]:
        last += 1
    return first * period, min((last + 1) * period, len(codes))


def _largest_gap(kernels: Sequence[GpuEvent], period: int) -> int:
    """Where in a period the kernel stands before which nothing runs for the longest time: by the median."""
    gaps: list[list[float]] = [[] for _ in range(period)]
    end_us = kernels[0].end_us
    for index, event in enumerate(kernels[1:], start=1):
        gaps[index % period].append(max(event.start_us - end_us, 0.0))
        end_us = max(end_us, event.end_us)
    return max(range(period), key=lambda index: statistics.median(gaps[index] or [0.0]))


def _regular(starts: list[int]) -> list[int]:
    """Those in the middle that are as far apart as most are: a prefill among them has another number of kernels."""
    distances = [b - a for a, b in itertools.pairwise(starts)]
    usual = statistics.median_low(distances)
    near = [abs(distance - usual) <= 0.02 * usual + 2 for distance in distances]
    middle = len(near) // 2
    first = last = middle
    while first > 0 and near[first - 1]:
        first -= 1
    while last < len(near) and near[last]:
        last += 1
    return starts[first : last + 1]
