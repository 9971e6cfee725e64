"""Measured costs against the machine they were measured on, and guesses that invite a measurement."""

import random

import pytest

from slipstream.scheduler.draft_costs import StepCosts


def machine(num_decode: int, num_warm: int, depth: int) -> float:
    return 5.0 + 0.5 * num_decode + 0.1 * num_warm + depth * (0.5 + 0.25 * num_warm)


def measured(*steps: tuple[int, int, int]) -> StepCosts:
    costs = StepCosts(3)
    for step in steps:
        for _ in range(3):
            costs.add(*step, machine(*step))
    return costs


def test_what_is_measured_is_known_and_depths_between_lie_on_a_line() -> None:
    costs = measured((8, 8, 0), (8, 8, 3))
    assert costs.estimate(8, 8, 3) == pytest.approx(machine(8, 8, 3))
    guess = costs.estimate(8, 8, 2)
    assert guess is not None and 0.9 * machine(8, 8, 2) < guess < machine(8, 8, 2), "a guess is a little hopeful"


def test_nothing_is_said_of_nothing() -> None:
    costs = StepCosts(3)
    assert costs.estimate(4, 4, 2) is None
    costs.add(4, 4, 2, 1.0)
    assert costs.estimate(4, 4, 2) is None, "one sample may be an outlier"


def test_from_full_depth_alone_plain_decoding_looks_worth_a_try_and_the_other_way_round() -> None:
    for depth, other in ((3, 0), (0, 3)):
        guess = measured((4, 4, depth)).estimate(4, 4, other)
        assert guess is not None and guess < machine(4, 4, other)


def test_another_size_nearby_tells_what_a_depth_costs_and_a_far_one_does_not() -> None:
    costs = measured((8, 8, 0), (8, 8, 3), (12, 12, 0), (64, 64, 0))
    near, far = costs.estimate(12, 12, 3), costs.estimate(64, 64, 3)
    assert near == pytest.approx(machine(12, 12, 3), rel=0.1)
    assert far is not None and far < 1.4 * machine(64, 64, 0), "hopeful, for want of anything near"


def test_slots_warm_and_cold_cost_between_the_two() -> None:
    costs = measured((16, 0, 0), (16, 16, 0), (16, 16, 2))
    plain, full = machine(16, 0, 0), machine(16, 16, 2)
    few, most = costs.estimate(16, 1, 2), costs.estimate(16, 15, 2)
    assert few is not None and most is not None
    assert plain + (full - plain) / 5 < few < most < full, "a part is paid for the first slot already"
    costs.add(16, 4, 2, 99.0)
    assert costs.estimate(16, 1, 2) == few


def test_outliers_are_left_out_and_the_mean_stays_true() -> None:
    rng = random.Random(5)
    costs = StepCosts(1)
    estimates: list[float] = []
    for step in range(2000):
        costs.add(4, 4, 1, 10.0 * rng.lognormvariate(0, 0.05) * (5 if rng.random() < 0.02 else 1))
        if step > 20:
            estimates.append(costs.estimate(4, 4, 1) or 0.0)
    assert sum(estimates) / len(estimates) == pytest.approx(10.0, rel=0.02)
    late = sorted(estimates)
    assert late[len(late) // 50] > 9.4 and late[-len(late) // 50] < 11.0


def test_a_machine_that_slows_down_takes_all_depths_along() -> None:
    costs = measured((1, 1, 0), (1, 1, 1), (1, 1, 3))
    for _ in range(30):
        costs.add(1, 1, 3, machine(1, 1, 3))
    for _ in range(3):
        costs.add(1, 1, 3, 2 * machine(1, 1, 3))
    for depth in (0, 1, 3):
        assert costs.estimate(1, 1, depth) == pytest.approx(2 * machine(1, 1, depth))


def test_what_a_short_look_finds_changed_is_that_depth_alone() -> None:
    costs = measured((1, 1, 0), (1, 1, 3))
    for _ in range(30):
        costs.add(1, 1, 3, machine(1, 1, 3))
    for _ in range(3):
        costs.add(1, 1, 0, 0.5 * machine(1, 1, 0))
    assert costs.estimate(1, 1, 0) == pytest.approx(0.5 * machine(1, 1, 0))
    assert costs.estimate(1, 1, 3) == pytest.approx(machine(1, 1, 3))


def test_asking_changes_no_answer() -> None:
    """Estimates are kept until something is learnt: who asks after every step hears what one hears who never asked."""
    rng = random.Random(8)
    asked, silent = StepCosts(3), StepCosts(3)
    batches = (1, 2, 7, 16, 64, 200)
    for _ in range(200):
        num_decode, depth = rng.choice(batches), rng.randint(0, 3)
        num_warm = rng.choice((0, num_decode))
        for _ in range(rng.randint(1, 30)):
            step_s = machine(num_decode, num_warm, depth if num_warm else 0) * rng.uniform(0.9, 1.1)
            asked.add(num_decode, num_warm, depth, step_s)
            silent.add(num_decode, num_warm, depth, step_s)
            for batch in batches:
                asked.estimate(batch, batch, 1)
        if rng.random() < 0.1:
            asked.forget_warm()
            silent.forget_warm()
        other = rng.choice(batches)
        for kind in range(4):
            assert asked.estimate(other, other, kind) == silent.estimate(other, other, kind)
