"""Rejection sampling of given probabilities and coins against the algorithm step by step in plain Python."""

import pytest
import torch

from slipstream.sampling.candidates import Candidates
from slipstream.sampling.rejection import reject

VOCAB = 5


def chains(num_drafts: tuple[int, ...], token_ids: list[list[int]], probs: torch.Tensor | None = None) -> Candidates:
    ids = torch.tensor(token_ids, dtype=torch.int64).view(len(num_drafts), -1)
    return Candidates.chain(num_drafts, ids, probs)


@pytest.mark.parametrize("with_q", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_equals_the_algorithm_step_by_step(seed: int, with_q: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 4, (6,), generator=generator).tolist()
    width = max(counts)
    p = torch.randn(sum(counts) + 6, VOCAB, generator=generator).mul(2).softmax(-1)
    q = torch.randn(6, width, VOCAB, generator=generator).mul(2).softmax(-1)
    drafts = torch.randint(0, VOCAB, (6, width), generator=generator)
    coins = torch.rand(6, width, generator=generator)
    way, rest = reject(chains(tuple(counts), drafts.tolist(), q if with_q else None), p, coins)
    row = 0
    for slot, count in enumerate(counts):
        length, left = 0, p[row + count]
        while length < count:
            token = drafts[slot, length]
            here = q[slot, length] if with_q else torch.eye(VOCAB)[token]
            if coins[slot, length] >= p[row + length, token] / here[token]:
                left = (p[row + length] - here).clamp(min=0)
                break
            length += 1
        assert way.length[slot] == length
        torch.testing.assert_close(rest[slot], left)
        row += count + 1


def test_a_greedy_request_accepts_what_equals_its_argmax() -> None:
    p = torch.eye(VOCAB)[[2, 3, 1, 2, 3, 1]]
    way, rest = reject(
        chains((2, 2), [[2, 3], [2, 4]], torch.eye(VOCAB)[torch.tensor([[2, 3], [2, 4]])]), p, torch.rand(2, 2)
    )
    assert way.length.tolist() == [2, 1]
    assert rest.argmax(-1).tolist() == [1, 3]
    assert (rest > 0).sum(-1).tolist() == [1, 1]


def test_a_draft_that_falls_by_rounding_alone_is_drawn_again_from_p() -> None:
    p = torch.tensor([[0.5, 0.5 - 2.0**-24], [1.0, 0.0]])
    way, rest = reject(chains((1,), [[1]], torch.full((1, 1, 2), 0.5)), p, torch.tensor([[1 - 2.0**-24]]))
    assert way.length.tolist() == [0]
    assert torch.equal(rest, p[:1])


def test_without_drafts_all_is_left() -> None:
    p = torch.rand(2, VOCAB)
    way, rest = reject(chains((0, 0), [[], []]), p, torch.zeros(2, 0))
    assert way.length.tolist() == [0, 0]
    assert torch.equal(rest, p)
