"""Measured costs against the machine they were measured on, and guesses that invite a measurement."""

import random

import pytest

from slipstream.scheduler.draft_costs import StepCosts
from slipstream.scheduler.draft_curve import Curve


def machine(num_decode: int, num_warm: int, depth: int) -> float:
    return 5.0 + 0.5 * num_decode + 0.1 * num_warm + depth * (0.5 + 0.25 * num_warm)


def measured(*steps: tuple[int, int, int]) -> StepCosts:
    costs = StepCosts(3, has_refeed=True)
    for step in steps:
        for _ in range(3):
            costs.add(*step, machine(*step))
    return costs


def test_what_is_measured_is_known_and_lies_on_lines_between_sizes_and_depths() -> None:
    costs = measured((8, 8, 0), (8, 8, 3), (12, 12, 0), (12, 12, 3))
    assert costs.estimate(8, 8, 3) == pytest.approx(machine(8, 8, 3))
    assert costs.estimate(10, 10, 3) == pytest.approx(machine(10, 10, 3))
    guess = costs.estimate(8, 8, 2)
    assert guess is not None and 0.9 * machine(8, 8, 2) < guess < machine(8, 8, 2), "a guess is a little hopeful"


def test_nothing_is_said_of_nothing() -> None:
    costs = StepCosts(3, has_refeed=True)
    assert costs.estimate(4, 4, 2) is None
    assert costs.plain(4) is None
    assert costs.known_size(4) is None


def test_from_full_depth_alone_plain_decoding_looks_worth_a_try_and_the_other_way_round() -> None:
    costs = measured((4, 4, 3))
    guess = costs.estimate(4, 4, 0)
    assert guess is not None and guess < machine(4, 4, 0)
    costs = measured((4, 4, 0))
    guess = costs.estimate(4, 4, 3)
    assert guess is not None and guess < machine(4, 4, 3)


def test_another_size_nearby_tells_what_a_depth_costs_and_a_far_one_does_not() -> None:
    costs = measured((8, 8, 0), (8, 8, 3), (12, 12, 0), (64, 64, 0))
    near, far = costs.estimate(12, 12, 3), costs.estimate(64, 64, 3)
    assert near == pytest.approx(machine(12, 12, 3), rel=0.1)
    assert far == pytest.approx(machine(64, 64, 0)), "hopeful, for want of anything near"


def test_slots_warm_and_cold_cost_between_the_two_until_such_a_mix_has_been_measured() -> None:
    costs = measured((16, 0, 0), (16, 16, 0), (16, 16, 2))
    plain, full = machine(16, 0, 0), machine(16, 16, 2)
    assert costs.estimate(16, 4, 2) == pytest.approx(plain + (full - plain) / 4)
    for _ in range(3):
        costs.add(16, 4, 2, 15.0)
    assert costs.estimate(16, 4, 2) == pytest.approx(15.0)
    assert costs.estimate(16, 16, 2) == pytest.approx(full)


def test_a_shallower_step_is_never_dearer_than_a_deeper_one() -> None:
    costs = measured((4, 4, 2))
    for _ in range(3):
        costs.add(4, 4, 0, 100.0)
    assert costs.estimate(4, 4, 0) == pytest.approx(machine(4, 4, 2))
    assert costs.plain(4) is not None and costs.plain(4) <= machine(4, 4, 2)  # type: ignore[operator]


def test_outliers_are_left_out_and_the_mean_stays_true() -> None:
    rng = random.Random(5)
    curve = Curve()
    estimates = []
    for step in range(2000):
        curve.add(4, 10.0 * rng.lognormvariate(0, 0.05) * (5 if rng.random() < 0.02 else 1))
        if step > 20:
            estimates.append(curve.points[4])
    assert sum(estimates) / len(estimates) == pytest.approx(10.0, rel=0.02)
    late = sorted(estimates)
    assert late[len(late) // 50] > 9.4 and late[-len(late) // 50] < 10.6


def test_times_that_come_in_two_kinds_are_averaged() -> None:
    rng = random.Random(6)
    curve = Curve()
    total = 0.0
    for _ in range(600):
        curve.add(1, 6.0 if rng.random() < 0.6 else 9.0)
        total += curve.points.get(1, 7.2)
    assert total / 600 == pytest.approx(7.2, rel=0.04)


def test_a_machine_that_slows_down_takes_all_depths_along() -> None:
    costs = measured((1, 1, 0), (1, 1, 1), (1, 1, 3))
    for _ in range(12):
        costs.add(1, 1, 3, machine(1, 1, 3))
    changed = [costs.add(1, 1, 3, 2 * machine(1, 1, 3)) for _ in range(3)]
    assert changed == [False, False, True]
    for depth in (0, 1, 3):
        assert costs.estimate(1, 1, depth) == pytest.approx(2 * machine(1, 1, depth))
    for _ in range(3):
        costs.add(1, 1, 0, machine(1, 1, 0))
    assert costs.estimate(1, 1, 0) == pytest.approx(machine(1, 1, 0)), "until it is measured again"
