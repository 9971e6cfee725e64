"""min_new_tokens against transformers' processor."""

import pytest
import torch
from transformers.generation.logits_process import MinNewTokensLengthLogitsProcessor

from slipstream.messages.sampling import SamplingParams
from slipstream.sampling.min_tokens import MinTokens

CPU = torch.device("cpu")
VOCAB = 8


def params(least: int, stop: tuple[int, ...]) -> SamplingParams:
    return SamplingParams(max_new_tokens=9, seed=0, min_new_tokens=least, stop_token_ids=stop)


@pytest.mark.parametrize("position", range(5, 11))
def test_equals_transformers_at_every_position(position: int) -> None:
    mask = MinTokens(VOCAB, CPU)
    mask.add(1, params(3, (2, 4)), prompt_len=5)
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(position))
    ids = torch.zeros(1, position, dtype=torch.int64)
    expected = MinNewTokensLengthLogitsProcessor(5, 3, torch.tensor([2, 4]), device="cpu")(ids, logits.clone())
    found = logits.clone()
    mask.apply(found, [1], [position])
    assert torch.equal(found, expected)
    assert torch.equal(found, logits) == (position >= 8)


def test_rows_of_one_slot_are_masked_by_their_own_position() -> None:
    mask = MinTokens(VOCAB, CPU)
    mask.add(1, params(2, (0,)), prompt_len=5)
    logits = torch.zeros(4, VOCAB)
    mask.apply(logits, [1, 1, 1, 0], [5, 6, 7, 5])
    assert (logits[:, 0] == -torch.inf).tolist() == [True, True, False, False]
    assert not logits[:, 1:].any()


def test_a_row_with_nothing_else_keeps_its_stop_ids() -> None:
    mask = MinTokens(VOCAB, CPU)
    mask.add(0, params(2, tuple(range(VOCAB))), prompt_len=0)
    mask.add(1, params(2, (3, 4)), prompt_len=0)
    logits = torch.arange(3.0 * VOCAB).view(3, VOCAB)
    logits[1, :3] = logits[1, 5:] = -torch.inf  # as a grammar at its end would leave it
    before = logits.clone()
    mask.apply(logits, [0, 1, 1], [0, 0, 0])
    assert torch.equal(logits[:2], before[:2])
    assert (logits[2] == -torch.inf).nonzero().flatten().tolist() == [3, 4]


def test_nothing_to_mask() -> None:
    mask = MinTokens(VOCAB, CPU)
    mask.add(0, params(5, ()), prompt_len=0)
    mask.add(1, params(5, (VOCAB, -3)), prompt_len=0)  # no token of this model
    mask.add(2, params(0, (1,)), prompt_len=0)
    mask.add(3, params(5, (1, 1, VOCAB)), prompt_len=0)
    mask.add(4, params(5, (1,)), prompt_len=0)
    mask.release(4)
    logits = torch.zeros(5, VOCAB)
    mask.apply(logits, range(5), [0] * 5)
    assert (logits == -torch.inf).nonzero().tolist() == [[3, 1]]
