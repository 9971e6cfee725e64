"""The acceptance estimator against the process that the outcomes were drawn from."""

import random

import pytest

from slipstream.scheduler.draft_acceptance import AcceptanceEstimator


def outcome(rng: random.Random, probabilities: list[float]) -> tuple[int, int]:
    accepted = 0
    while accepted < len(probabilities) and rng.random() < probabilities[accepted]:
        accepted += 1
    return len(probabilities), accepted


@pytest.mark.parametrize("num_slots", [1, 16])
@pytest.mark.parametrize("probabilities", [[0.6, 0.6, 0.6], [0.9, 0.7, 0.3], [0.3, 0.9, 0.9]])
def test_it_finds_the_expected_number_of_each_depth(num_slots: int, probabilities: list[float]) -> None:
    rng = random.Random(7)
    estimator = AcceptanceEstimator(3)
    errors = []
    exact = [
        probabilities[0],
        probabilities[0] * (1 + probabilities[1]),
        probabilities[0] * (1 + probabilities[1] * (1 + probabilities[2])),
    ]
    for step in range(2000 // num_slots):
        estimator.observe([outcome(rng, probabilities) for _ in range(num_slots)])
        if step * num_slots > 300:
            errors.append([estimator.expected(depth) - exact[depth - 1] for depth in (1, 2, 3)])
    for depth in range(3):
        mean = sum(error[depth] for error in errors) / len(errors)
        spread = (sum((error[depth] - mean) ** 2 for error in errors) / len(errors)) ** 0.5
        assert abs(mean) < 0.06
        assert spread < 0.2


def test_a_change_is_noticed_within_dozens_of_trials_and_noise_is_not() -> None:
    rng = random.Random(3)
    estimator = AcceptanceEstimator(1)
    lowest = 1.0
    for step in range(3000):
        estimator.observe([outcome(rng, [0.9])])
        lowest = min(lowest, estimator.expected(1)) if step > 100 else lowest
    assert lowest > 0.6
    for _ in range(60):
        estimator.observe([(1, 0)])
    assert estimator.expected(1) < 0.4
    for _ in range(60):
        estimator.observe([(1, 1)])
    assert estimator.expected(1) > 0.6


def test_depths_not_verified_follow_the_deepest_one_that_is() -> None:
    estimator = AcceptanceEstimator(3)
    for _ in range(50):
        estimator.observe([(3, 1)])
    assert estimator.expected(3) < 1.2
    for _ in range(2000):
        estimator.observe([(1, 1)])
    assert estimator.expected(3) > 2.0, "what is long ago fades"


def test_doubt_lets_a_few_trials_decide() -> None:
    for hits, low, high in ((0, 0.0, 0.02), (8, 0.6, 1.0)):
        estimator = AcceptanceEstimator(2)
        estimator.observe([(2, 0)] * 500)
        assert estimator.expected(1) < 0.02
        estimator.doubt()
        estimator.observe([(1, 1)] * hits + [(1, 0)] * (8 - hits))
        assert low <= estimator.expected(1) <= high
