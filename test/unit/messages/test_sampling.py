"""What DraftStats adds up to, by hand."""

import doctest

import pytest

from slipstream.messages import sampling
from slipstream.messages.sampling import DraftStats
from slipstream.messages.to_tokenizer import Counters

STATS = DraftStats(12, (1, 0, 1, 2))  # 4 steps of 3 drafts: 0, 2, 3 and 3 accepted


def test_of_four_verify_steps() -> None:
    assert (STATS.num_verify, STATS.num_accepted) == (4, 8)
    assert STATS.acceptance_length == (1 + 3 + 4 + 4) / 4
    assert STATS.acceptance_rate == pytest.approx(8 / 12)
    assert STATS.position_rates == [3 / 4, 3 / 4, 2 / 4]
    assert Counters(num_drafts=4, num_draft_tokens=12, num_accepted_tokens=8).acceptance_length == 3


@pytest.mark.parametrize("stats", [DraftStats(0, ()), DraftStats(0, (0, 0)), DraftStats.total([])])
def test_without_verify_steps_there_is_nothing_to_say(stats: DraftStats) -> None:
    assert stats.acceptance_length is None and stats.acceptance_rate is None and stats.position_rates == []
    assert Counters().acceptance_length is None


def test_totals_take_histograms_of_any_length() -> None:
    assert DraftStats.total([STATS, DraftStats(2, (0, 1)), DraftStats(0, ())]) == DraftStats(14, (1, 1, 1, 2))


def test_doctests() -> None:
    assert doctest.testmod(sampling).failed == 0
