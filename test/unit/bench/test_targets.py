"""The table of targets: its shapes, its peers, and what a measurement is compared with."""

import re

import pytest

from slipstream.bench.one_batch import Shape
from slipstream.bench.results import meets
from slipstream.bench.targets import BS_1, BS_8, BS_64, BS_256, LONG, MIDDLE, SHORT, TARGETS, find_targets, shapes_of


def test_cases_of_a_preset() -> None:
    assert shapes_of("7b", has_draft=False, cases="targets") == [BS_1, BS_8, BS_64, BS_256, LONG, MIDDLE, SHORT]
    assert shapes_of("7b", has_draft=False, cases="prefill") == [LONG, MIDDLE, SHORT]
    assert shapes_of("7b", has_draft=True, cases="targets") == [BS_1, BS_8, BS_64]
    assert shapes_of("24b", has_draft=False, cases="targets") == [BS_1, BS_64, MIDDLE]
    assert shapes_of("24b", has_draft=True, cases="targets") == []
    assert shapes_of("128b-fp8", has_draft=True, cases="decode") == [BS_1, BS_64]


def test_every_target_is_at_least_as_good_as_both_peers() -> None:
    for target in TARGETS:
        faster = next(iter(target.peers.values()))
        assert meets(faster, target.goal) is False, target.case
        assert faster == (max if target.more_is_better else min)(target.peers.values())
        if target.stretch is not None:
            number = float(re.sub("[<>= ]", "", target.stretch))
            assert meets(number, target.goal) is True


def test_names_of_cases_are_unique() -> None:
    assert len({target.case for target in TARGETS}) == len(TARGETS)
    assert TARGETS[4].case == "7b + EAGLE, acceptance length 3, bs 1, in 128, out 257: time per token"


@pytest.mark.parametrize(
    ("preset", "shape", "length", "drafts", "gpus", "goals"),
    [
        ("7b", BS_1, None, 0, 1, ["<= 3.6"]),
        ("7b", BS_1, 3.0, 3, 1, ["<= 1.55"]),
        ("7b", BS_1, 2.0, 3, 1, []),
        ("7b", BS_1, 3.0, 5, 1, []),
        ("7b", Shape(1, 100, 257), None, 0, 1, []),
        (None, BS_1, None, 0, 1, []),
        ("128b-fp8", BS_1, None, 0, 1, []),
        ("128b-fp8", BS_1, None, 0, 4, ["<= 9.5"]),
    ],
)
def test_what_a_measurement_is_compared_with(
    preset: str | None, shape: Shape, length: float | None, drafts: int, gpus: int, goals: list[str]
) -> None:
    found = find_targets(preset, shape, acceptance_length=length, num_drafts=drafts, num_gpus=gpus)
    assert [target.goal for target in found] == goals
