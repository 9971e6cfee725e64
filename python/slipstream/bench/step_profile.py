"""What a GPU did in a step, from the trace of a profiler: kernels, and the gaps between them."""

import itertools
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from slipstream.bench.kernel_trace import GpuEvent, gaps_us, split_steps

_NAME_LENGTH = 60


@dataclass(frozen=True)
class KernelRow:
    """All launches of one kernel; figures are of one step, on average.

    A kernel that is launched early (programmatic dependent launch) waits for the one before: its time is what it adds,
    from the end of all before it, so that times add up to the time in which anything runs.
    """

    name: str
    count: float
    microseconds: float
    share: float


@dataclass(frozen=True)
class StepProfile:
    """Steady steps of a trace; times are microseconds of one step."""

    num_steps: int
    step_us: float  # from a step's first kernel to the next step's: median
    busy_us: float  # something runs
    idle_us: float  # nothing does
    largest_gap_us: float  # the largest inside any step, between the end of all before and the next start
    between_steps_us: float  # the same between two steps: median
    largest_between_steps_us: float
    kernels: list[KernelRow]  # the longest first


def profile_steps(
    events: Sequence[GpuEvent], first_kernel: str | None = None, num_steps: int | None = None
) -> StepProfile:
    """Profile the steady steps of a trace, `num_steps` of them at most, those in its middle.

    A step begins with the kernel whose name `first_kernel` (a regular expression) finds; without it where the gap is
    largest, so that the time between steps is rather too long than too short.
    Raises SlipstreamError where the trace does not repeat itself.
    """
    steps = split_steps(events, first_kernel)
    if num_steps is not None and len(steps) > num_steps + 1:
        begin = (len(steps) - num_steps - 1) // 2
        steps = steps[begin : begin + num_steps + 1]
    ends = [max(event.end_us for event in step) for step in steps]
    counted = steps[:-1]  # the last one only ends the one before
    between = [max(following[0].start_us - end_us, 0.0) for end_us, following in zip(ends, steps[1:], strict=False)]
    gaps = [gaps_us(step) for step in counted]
    count = len(counted)
    total_us = steps[-1][0].start_us - steps[0][0].start_us
    idle_us = sum(map(sum, gaps)) + sum(between)
    return StepProfile(
        num_steps=count,
        step_us=statistics.median(b[0].start_us - a[0].start_us for a, b in itertools.pairwise(steps)),
        busy_us=(total_us - idle_us) / count,
        idle_us=idle_us / count,
        largest_gap_us=max((gap for step in gaps for gap in step), default=0.0),
        between_steps_us=statistics.median(between),
        largest_between_steps_us=max(between),
        kernels=kernel_rows(counted),
    )


def kernel_rows(steps: Sequence[Sequence[GpuEvent]]) -> list[KernelRow]:
    """Launches and time of every kernel, the longest first."""
    found: dict[str, list[float]] = {}
    end_us = steps[0][0].start_us
    for event in itertools.chain.from_iterable(steps):
        added_us = event.end_us - max(event.start_us, end_us)
        found.setdefault(short_name(event.name), []).append(max(added_us, 0.0))
        end_us = max(end_us, event.end_us)
    total_us = sum(map(sum, found.values())) or 1.0
    rows = [
        KernelRow(name, len(each) / len(steps), sum(each) / len(steps), sum(each) / total_us)
        for name, each in found.items()
    ]
    return sorted(rows, key=lambda row: -row.microseconds)


def short_name(name: str) -> str:
    """A kernel's name without types, template arguments and parameters.

    >>> short_name("void at::native::vectorized_elementwise_kernel<4, at::F<float>>(int, float)")
    'vectorized_elementwise_kernel'
    """
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    while (shorter := re.sub(r"<[^<>]*>", "", name)) != name:
        name = shorter
    return name.partition("(")[0].rpartition("::")[2].strip()[:_NAME_LENGTH] or "unnamed"


def profile_table(profile: StepProfile, num_rows: int = 25) -> str:
    """The profile as Markdown."""
    between_us, largest_us = profile.between_steps_us, profile.largest_between_steps_us
    lines = [
        f"{profile.num_steps} steps of {profile.step_us:.1f} us each: {profile.busy_us:.1f} us busy and "
        f"{profile.idle_us:.1f} us idle. Between two steps {between_us:.1f} us, at most {largest_us:.1f} us; the "
        f"largest gap inside a step is {profile.largest_gap_us:.1f} us.",
        "",
        "| kernel | launches a step | us a step | share |",
        "|---|---|---|---|",
    ]
    shown = profile.kernels[:num_rows]
    lines += [f"| `{row.name}` | {row.count:.4g} | {row.microseconds:.1f} | {row.share:.1%} |" for row in shown]
    if rest := profile.kernels[num_rows:]:
        launches, microseconds = sum(row.count for row in rest), sum(row.microseconds for row in rest)
        share = sum(row.share for row in rest)
        lines.append(f"| {len(rest)} others | {launches:.4g} | {microseconds:.1f} | {share:.1%} |")
    return "\n".join(lines)
