"""What is concluded from the turns of two servers."""

from typing import Any

import pytest

from support.scripts import load_script

script = load_script("never_slower")


def phase(name: int, plain_s: list[float], drafting_s: list[float], depths: list[tuple[float, int]]) -> Any:
    return script.Phase(
        script.PHASES[name][0], 16, 0, tokens=[1000] * len(plain_s), plain_s=plain_s, drafting_s=drafting_s,
        depths=depths, load=[1.5] * len(plain_s),
    )  # fmt: skip


def test_a_ratio_is_of_speeds_and_long_turns_count_more() -> None:
    one = phase(0, [1.0, 3.0], [2.0, 3.0], [])
    assert one.ratio == pytest.approx(4 / 5)
    assert one.turn_ratios == [0.5, 1.0]
    assert script.overall_ratio([one, phase(0, [5.0], [3.0], [])]) == pytest.approx(9 / 8)


def test_k_has_settled_when_it_hardly_changes_any_more() -> None:
    depths = [(0.5, 3), (1.0, 0), (1.5, 3), *((2.0 + index / 2, int(index == 5)) for index in range(20))]
    assert script.settled_s(depths, drafts=False) == 1.0, "one glimpse of drafts in the rest of the time"
    assert script.settled_s(depths, drafts=True) is None


def test_full_speed_is_that_of_the_later_turns() -> None:
    assert script.recovered_s([2.0] * 6, [0.9, 1.0, 1.45, 1.5, 1.5, 1.5]) == 6.0
    assert script.recovered_s([2.0] * 4, [1.0] * 4) == 2.0


def test_both_servers_get_the_same_requests_and_each_turn_others() -> None:
    prompts = [[index] for index in range(50)]
    first = script.requests_of(3, prompts, 8, 0)
    assert first == script.requests_of(3, prompts, 8, 0) != script.requests_of(4, prompts, 8, 0)
    assert all(request.sampling["accept_cap"] == 0 and request.sampling["temperature"] == 0 for request in first)
    assert "accept_cap" not in script.requests_of(3, prompts, 1, None)[0].sampling


def test_results_have_the_target_and_the_time_of_the_slowest_round() -> None:
    rounds = [phase(1, [2.0, 2.0], [4.0, 1.0], [(0.5, 0), (1.0, 3)]), phase(1, [2.0], [1.0], [(0.5, 3)])]
    found = script.to_results([phase(0, [1.0], [1.25], []), *rounds], [])
    assert [(result.value, result.unit, result.target) for result in found] == [
        (0.8, "x", ">= 0.97"), (1.0, "x", ">= 0.97"), (1.0, "s", None), (5.0, "s", None),
    ]  # fmt: skip
    never = script.to_results([phase(1, [1.0], [1.0], [(0.5, 0)])], [])
    assert [result.value for result in never if result.unit == "s"] == [1.0], "K never rose: there is no such time"
