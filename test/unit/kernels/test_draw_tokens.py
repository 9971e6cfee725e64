"""Draws of the kernels against those of the plain-torch sampler."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from slipstream.kernels import filters
from slipstream.kernels.draw import draw_tokens
from slipstream.kernels.launch import IS_INTERPRETED
from slipstream.messages.sampling import SamplingParams
from slipstream.sampling.sampler import Sampler
from support.one_thread import for_tiny_models  # noqa: F401

DEVICE = torch.device("cpu" if IS_INTERPRETED else "cuda")
MIXED: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.6, "choice": 2},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.07},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.02, "temperature": 1.3},
]
EXTREMES: list[dict[str, Any]] = [
    {"temperature": 1e-5},
    {"temperature": 200.0, "top_p": 0.5},
    {"top_k": 1},
    {"top_k": 6, "temperature": 30.0},
    {"top_p": 1e-6},
    {"top_p": 0.99999, "temperature": 5.0},
    {"min_p": 1.0},
    {"temperature": 0.02, "top_k": 3, "top_p": 0.99},
]


def sampler_of(requests: Sequence[dict[str, Any]], vocab_size: int) -> Sampler:
    """Slot i holds requests[i]; one more slot is empty."""
    sampler = Sampler(len(requests) + 1, vocab_size, DEVICE)
    for slot, request in enumerate(requests):
        params = SamplingParams(max_new_tokens=1, seed=random.getrandbits(64), **request)
        sampler.add(slot, params, [0], 1)
    return sampler


def assert_same_draws(sampler: Sampler, logits: Tensor, slots: Sequence[int]) -> Tensor:
    positions = [random.randrange(100_000) for _ in slots]
    expected = sampler.draw(logits.float().clone(), slots, positions)
    found, is_finite = draw_tokens(logits, int64(slots), int64(positions), sampler.tables())
    assert is_finite.all() and is_finite.dtype == torch.bool
    assert found.tolist() == expected.tolist()
    return found


def int64(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=DEVICE)


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(20)
    torch.manual_seed(20)


@pytest.mark.parametrize(("vocab_size", "num_draws"), [(7, 5), (61, 5), (300, 4), (5000, 1)])
def test_each_filter_and_all_together(vocab_size: int, num_draws: int) -> None:
    sampler = sampler_of(MIXED, vocab_size)
    slots = list(range(len(MIXED) + 1))
    for _ in range(num_draws):
        random.shuffle(slots)
        assert_same_draws(sampler, 3 * torch.randn(len(slots), vocab_size, device=DEVICE), slots)


def test_extreme_parameters() -> None:
    sampler = sampler_of(EXTREMES, 50)
    for _ in range(5):
        assert_same_draws(sampler, 3 * torch.randn(len(EXTREMES), 50, device=DEVICE), range(len(EXTREMES)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_two_bytes_and_their_ties(dtype: torch.dtype) -> None:
    sampler = sampler_of(MIXED, 257)
    for spread in (0.01, 2.0, 20.0):
        logits = (spread * torch.randn(len(MIXED), 257, device=DEVICE)).to(dtype)
        assert_same_draws(sampler, logits, range(len(MIXED)))


@pytest.mark.parametrize("num_values", [1, 2, 5])
def test_all_tokens_of_one_value_stay_or_go(num_values: int) -> None:
    """The filters' borders lie within ties; which of them wins is up to the noise alone."""
    requests: list[dict[str, Any]] = [{"top_k": 2}, {"top_p": 0.3}, {"min_p": 0.5}, {"top_k": 20, "top_p": 0.6}]
    sampler = sampler_of(requests, 64)
    for _ in range(3):
        assert_same_draws(sampler, torch.randint(num_values, (4, 64), device=DEVICE).bfloat16(), range(4))


@pytest.mark.parametrize("num_rows", [1, 9, 65])
def test_the_first_of_equal_maxima_wins_across_blocks(num_rows: int) -> None:
    """More rows are cut into larger blocks."""
    sampler = sampler_of([], 5000)
    logits = torch.zeros(num_rows, 5000, device=DEVICE)
    logits[:, [1500, 1501, 4200]] = 2.0
    assert assert_same_draws(sampler, logits, [0] * num_rows).unique().tolist() == [1500]


def test_a_draw_is_the_same_alone_and_among_many_rows() -> None:
    sampler = sampler_of([{"top_p": 0.9, "temperature": 2.0}, {}], 2500)
    logits = torch.randn(65, 2500, device=DEVICE)
    slots, positions = int64([0, 1] + [2] * 63), int64(range(65))
    together, _ = draw_tokens(logits, slots, positions, sampler.tables())
    for row in range(2):
        of_row = slice(row, row + 1)
        alone, _ = draw_tokens(logits[of_row], slots[of_row], positions[of_row], sampler.tables())
        assert alone.item() == together[row].item()


def test_many_random_draws_without_filters() -> None:
    sampler = sampler_of([{}, {"temperature": 1.7}, {"temperature": 0.0}], 130)
    slots = [random.randrange(3) for _ in range(110)]
    assert_same_draws(sampler, torch.randn(110, 130, device=DEVICE), slots)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_harms_no_other(value: float) -> None:
    sampler = sampler_of([{}, {"temperature": 0.0}, {"top_k": 3, "top_p": 0.5}], 33)
    logits = torch.randn(6, 33, device=DEVICE)
    slots, positions = int64([0, 1, 2] * 2), int64(range(6))
    expected, _ = draw_tokens(logits, slots, positions, sampler.tables())
    logits[0, 32], logits[1, 0], logits[2] = value, value, value
    found, is_finite = draw_tokens(logits, slots, positions, sampler.tables())
    assert is_finite.tolist() == [False] * 3 + [True] * 3
    assert found[3:].tolist() == expected[3:].tolist()
    assert ((found >= 0) & (found < 33)).all()


def test_greedy_rows_and_rows_without_filters_search_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not used costs nothing, and this test knows that the search is what finds thresholds."""
    if not IS_INTERPRETED:
        pytest.skip("compiled kernels hold their functions")

    def search(*_: object) -> None:
        raise AssertionError("a search")

    monkeypatch.setattr(filters, "_shortest_reach", search)
    sampler = sampler_of([{}, {"temperature": 0.0}, {"min_p": 0.1}, {"top_k": 3}], 33)
    assert_same_draws(sampler, torch.randn(4, 33), [0, 1, 2, 4])
    with pytest.raises(Exception, match="a search"):
        draw_tokens(torch.randn(1, 33), int64([3]), int64([0]), sampler.tables())


def test_no_rows() -> None:
    token_ids, is_finite = draw_tokens(
        torch.zeros(0, 9, device=DEVICE), int64([]), int64([]), sampler_of([], 9).tables()
    )
    assert token_ids.shape == is_finite.shape == (0,)
