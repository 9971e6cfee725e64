"""Steps, gaps and kernels of traces whose steps are known because they were made here."""

import random

import numpy as np
import pytest

from slipstream.bench.kernel_trace import GpuEvent, find_period, gaps_us, gpu_events, split_steps
from slipstream.bench.step_profile import kernel_rows, profile_steps, profile_table, short_name
from slipstream.errors import SlipstreamError

LAYER = [("norm", 2.0), ("qkv", 10.0), ("attention", 5.0), ("out", 6.0), ("gate_up", 20.0), ("down", 12.0)]
TAIL = [("head", 40.0), ("draw", 4.0), ("verify", 3.0)]
GAP_US, BETWEEN_US = 1.0, 9.0


def step_kernels(num_layers: int = 8) -> list[tuple[str, float]]:
    return [("embed", 3.0), *LAYER * num_layers, *TAIL]


def trace_of(num_steps: int, *, prefill: bool = True, copies: bool = True) -> list[GpuEvent]:
    """A prefill, then steps with 1 us between kernels and 9 us between steps, each with a copy on another stream."""
    rng = random.Random(0)
    events, now_us = [], 1000.0
    if prefill:
        for index in range(57):
            events.append(GpuEvent(f"gemm{index % 5}", now_us, 50.0))
            now_us += 55.0
    for _ in range(num_steps):
        begin_us = now_us
        for name, duration_us in step_kernels():
            events.append(GpuEvent(name, now_us, duration_us))
            now_us += duration_us + GAP_US
        now_us += BETWEEN_US - GAP_US
        if copies:  # never alone: a kernel runs all the while
            events.append(GpuEvent("Memcpy DtoH (Device -> Pinned)", begin_us + rng.choice([0.5, 1.0]), 1.0))
    return sorted(events, key=lambda event: event.start_us)


BUSY_US = sum(duration_us for _, duration_us in step_kernels())
NUM_KERNELS = len(step_kernels())


@pytest.mark.parametrize("first_kernel", [None, "^embed$"])
def test_figures_of_a_known_trace(first_kernel: str | None) -> None:
    profile = profile_steps(trace_of(40), first_kernel, num_steps=20)
    assert profile.num_steps == 20
    assert profile.busy_us == pytest.approx(BUSY_US)
    assert profile.idle_us == pytest.approx((NUM_KERNELS - 1) * GAP_US + BETWEEN_US)
    assert profile.step_us == pytest.approx(BUSY_US + (NUM_KERNELS - 1) * GAP_US + BETWEEN_US)
    assert profile.between_steps_us == profile.largest_between_steps_us == pytest.approx(BETWEEN_US)
    assert profile.largest_gap_us == pytest.approx(GAP_US)
    rows = {row.name: row for row in profile.kernels}
    assert rows["gate_up"].count == 8 and rows["gate_up"].microseconds == pytest.approx(8 * 20.0)
    assert rows["head"].share == pytest.approx(40.0 / BUSY_US)
    assert profile.kernels[0].name == "gate_up" and "gemm0" not in rows


def test_the_period_is_a_step_and_not_a_layer() -> None:
    names = [event.name for event in trace_of(12, prefill=False, copies=False)]
    codes = {name: index for index, name in enumerate(dict.fromkeys(names))}
    assert find_period(np.array([codes[name] for name in names])) == NUM_KERNELS


def test_steps_are_the_ones_that_repeat_themselves() -> None:
    steps = split_steps(trace_of(30))
    assert all(next(event.name for event in step if event.is_kernel) == "embed" for step in steps)
    assert 28 <= len(steps) <= 31
    assert all(sum(event.is_kernel for event in step) == NUM_KERNELS for step in steps[:-1])


def test_one_long_stall_shows_in_the_largest_gap() -> None:
    events = trace_of(40, prefill=False, copies=False)
    middle = 20 * NUM_KERNELS  # the first kernel of a step
    events = [
        event if index < middle else GpuEvent(event.name, event.start_us + 300, event.duration_us)
        for index, event in enumerate(events)
    ]
    profile = profile_steps(events)
    assert profile.between_steps_us == pytest.approx(BETWEEN_US)
    assert profile.largest_between_steps_us == pytest.approx(BETWEEN_US + 300)


def test_a_kernel_that_waits_for_the_one_before_counts_what_it_adds() -> None:
    """Programmatic dependent launch: b starts while a runs, and ends 4 us after it."""
    rows = kernel_rows([[GpuEvent("a", 0.0, 10.0), GpuEvent("b", 2.0, 12.0), GpuEvent("c", 20.0, 1.0)]])
    assert {row.name: row.microseconds for row in rows} == {"a": 10.0, "b": 4.0, "c": 1.0}
    assert gaps_us([GpuEvent("a", 0.0, 10.0), GpuEvent("b", 2.0, 12.0), GpuEvent("c", 20.0, 1.0)]) == [6.0]


def test_traces_without_steps() -> None:
    with pytest.raises(SlipstreamError, match="holds no kernel"):
        split_steps([GpuEvent("Memcpy HtoD", 0.0, 1.0)])
    rng = random.Random(1)
    noise = [GpuEvent(rng.choice("abcdef"), float(index), 0.5) for index in range(400)]
    with pytest.raises(SlipstreamError, match="does not repeat itself"):
        split_steps(noise)
    with pytest.raises(SlipstreamError, match="only 0 kernels"):
        split_steps(trace_of(5), "nothing like it")


def test_events_of_a_chrome_trace() -> None:
    trace = {
        "traceEvents": [
            {"ph": "X", "cat": "kernel", "name": "b", "ts": 5.5, "dur": 1.0},
            {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 1.0, "dur": 9.0},
            {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy DtoH", "ts": 2, "dur": 1},
            {"ph": "M", "name": "process_name"},
        ]
    }
    assert gpu_events(trace) == [GpuEvent("Memcpy DtoH", 2.0, 1.0), GpuEvent("b", 5.5, 1.0)]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("_skinny_linear", "_skinny_linear"),
        ("void at::native::elementwise_kernel<128, 4, at::F<float>>(int, float)", "elementwise_kernel"),
        ("void cutlass::Kernel2<cutlass_80_wmma<a, b>>(Params)", "Kernel2"),
        ("nvjet_tst_128x8_64x12_2x1_v_bz_TNT", "nvjet_tst_128x8_64x12_2x1_v_bz_TNT"),
        ("(anonymous namespace)::fill(float*)", "fill"),
        ("Memcpy DtoH (Device -> Pinned)", "Memcpy DtoH"),
        ("k" * 200, "k" * 60),
    ],
)
def test_short_names(name: str, short: str) -> None:
    assert short_name(name) == short


def test_table() -> None:
    table = profile_table(profile_steps(trace_of(20)), num_rows=2)
    assert "| `gate_up` | 8 | 160.0 | " in table and "| 9 others | " in table
    assert f"{BUSY_US:.1f} us busy" in table and "Between two steps 9.0 us" in table
