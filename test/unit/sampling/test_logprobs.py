"""Logprobs against log_softmax in double precision."""

import pytest
import torch

from slipstream.messages.sampling import Logprob
from slipstream.sampling.logprobs import gather_logprobs


def test_equals_log_softmax_in_double_precision() -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)) * 4
    before = logits.clone()
    token_ids = torch.tensor([7, 0, 299, 4, 5])
    top = [3, None, 0, 20, 1]
    found = gather_logprobs(logits, token_ids, top)
    assert torch.equal(logits, before)
    exact = logits.double().log_softmax(-1)
    for row, num_top in enumerate(top):
        entry = found[row]
        if num_top is None:
            assert entry is None
            continue
        assert entry is not None and entry.token_id == token_ids[row]
        assert entry.logprob == pytest.approx(exact[row, token_ids[row]].item(), abs=2e-6)
        order = sorted(range(300), key=lambda i: -exact[row, i].item())[:num_top]
        assert [token for token, _ in entry.top] == order
        assert [value for _, value in entry.top] == pytest.approx([exact[row, i].item() for i in order], abs=2e-6)


def test_ties_are_ranked_by_id_whatever_the_other_rows_ask_for() -> None:
    logits = torch.tensor([[1.0, 5.0, -0.0, 5.0, 0.0, 5.0, -2.0, -2.0, 0.0]]).repeat(2, 1)
    for other in (None, 0, 1, 5, 9):
        entry = gather_logprobs(logits, torch.tensor([0, 0]), [2, other])[0]
        assert entry is not None and [token for token, _ in entry.top] == [1, 3]
    whole = gather_logprobs(logits, torch.tensor([0, 0]), [9, None])[0]
    assert whole is not None and [token for token, _ in whole.top] == [1, 3, 5, 0, 2, 4, 8, 6, 7]


def test_rows_do_not_influence_each_other() -> None:
    logits = torch.randn(6, 4099, generator=torch.Generator().manual_seed(1))
    token_ids = torch.arange(6) * 600
    together = gather_logprobs(logits, token_ids, [4, 1, 2, 3, 0, 5])
    for row, num_top in enumerate([4, 1, 2, 3, 0, 5]):
        assert gather_logprobs(logits[row : row + 1], token_ids[row : row + 1], [num_top]) == [together[row]]


def test_edges() -> None:
    assert gather_logprobs(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), []) == []
    assert gather_logprobs(torch.zeros(2, 4), torch.tensor([0, 1]), [None, None]) == [None, None]
    masked = torch.tensor([[0.0, -torch.inf]])
    assert gather_logprobs(masked, torch.tensor([1]), [5]) == [
        Logprob(token_id=1, logprob=-torch.inf, top=[(0, 0.0), (1, -torch.inf)])
    ]
