"""top-k, top-p and min-p against transformers' processors, and the documented rule for ties."""

import pytest
import torch
from transformers.generation.logits_process import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from slipstream.messages.sampling import SamplingParams
from slipstream.sampling.filters import NUCLEUS_HEAD, Filters, nucleus_threshold

CPU = torch.device("cpu")
NO_IDS = torch.zeros(1, 0, dtype=torch.int64)
SETTINGS: list[dict[str, float]] = [
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 300},
    {"top_p": 0.05},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"min_p": 0.02},
    {"min_p": 0.5},
    {"top_k": 20, "top_p": 0.8},
    {"top_k": 50, "min_p": 0.1},
    {"top_p": 0.9, "min_p": 0.05},
    {"top_k": 30, "top_p": 0.9, "min_p": 0.03},
]


def params(**fields: float) -> SamplingParams:
    return SamplingParams(max_new_tokens=9, seed=0, **fields)  # type: ignore[arg-type]


def filtered(logits: torch.Tensor, *settings: SamplingParams) -> torch.Tensor:
    filters = Filters(len(settings), logits.shape[-1], CPU)
    for slot, setting in enumerate(settings):
        filters.add(slot, setting)
    result = logits.clone()
    filters.apply(result, range(len(settings)))
    return result


def reference(logits: torch.Tensor, setting: dict[str, float]) -> torch.Tensor:
    if "top_k" in setting:
        logits = TopKLogitsWarper(int(setting["top_k"]))(NO_IDS, logits)
    if "top_p" in setting:
        logits = TopPLogitsWarper(setting["top_p"])(NO_IDS, logits)
    if "min_p" in setting:
        logits = MinPLogitsWarper(setting["min_p"])(NO_IDS, logits)  # type: ignore[arg-type]
    return logits


def random_logits(rows: int, vocab: int, scale: float = 2.5) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab + rows)) * scale


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_equals_transformers(setting: dict[str, float]) -> None:
    logits = random_logits(20, 400)
    found = filtered(logits, *[params(**setting)] * 20)
    assert torch.equal(found, reference(logits, setting))
    assert not torch.equal(found, logits)  # negative control: without the filter the test would fail


def test_mixed_batch_equals_each_row_alone() -> None:
    settings: list[dict[str, float]] = [*SETTINGS, {}, {"top_k": 400}, {"top_p": 1.0}, {"min_p": 0.0}]
    logits = random_logits(len(settings), 400)
    found = filtered(logits, *[params(**setting) for setting in settings])
    for row, setting in enumerate(settings):
        assert torch.equal(found[row], filtered(logits[row : row + 1], params(**setting))[0])
        assert torch.equal(found[row], reference(logits[row : row + 1], setting)[0])
    assert torch.equal(found[-4:], logits[-4:])  # neutral values change nothing


def test_nucleus_longer_than_the_head_is_found_beside_short_ones() -> None:
    logits = random_logits(4, 5 * NUCLEUS_HEAD, scale=0.5)
    logits[1] *= 20  # a short nucleus
    found = filtered(logits, *[params(top_p=0.9)] * 4)
    assert (found > -torch.inf).sum(-1).tolist()[0] > NUCLEUS_HEAD > (found > -torch.inf).sum(-1).tolist()[1]
    probs = logits.double().softmax(-1).sort(-1, descending=True).values
    kept = (probs.cumsum(-1) - probs < 0.9).sum(-1)  # in fp64; fp32 sums may move the edge by a token
    assert ((found > -torch.inf).sum(-1) - kept).abs().max() <= 1
    for row in range(4):
        assert torch.equal(found[row], filtered(logits[row : row + 1], params(top_p=0.9))[0])


def test_ties_stay_or_go_together() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0, 1.0, 1.0]])
    assert (filtered(logits, params(top_k=1))[0] > -torch.inf).tolist() == [False, True, False, True, False, False]
    assert (filtered(logits, params(top_k=3))[0] > -torch.inf).tolist() == [False, True, True, True, True, True]
    # the two likeliest hold 0.83: the next three come in together
    assert (filtered(logits, params(top_p=0.85))[0] > -torch.inf).tolist() == [False, True, True, True, True, True]
    assert (filtered(logits, params(top_p=0.1))[0] > -torch.inf).tolist() == [False, True, False, True, False, False]
    assert (filtered(logits, params(min_p=1.0))[0] > -torch.inf).tolist() == [False, True, False, True, False, False]


def test_likeliest_token_always_stays() -> None:
    logits = random_logits(8, 100)
    found = filtered(logits, *[params(top_k=1, top_p=1e-9, min_p=1.0)] * 8)
    assert torch.equal((found > -torch.inf).nonzero()[:, 1], logits.argmax(-1))


def test_nucleus_threshold_of_the_worked_example() -> None:
    probs = torch.tensor([[0.2, 0.5, 0.3]])
    assert nucleus_threshold(probs, torch.tensor([0.7])).tolist() == pytest.approx([0.3])
    assert nucleus_threshold(probs, torch.tensor([0.85])).tolist() == pytest.approx([0.2])


def test_masked_logits_stay_masked_and_hold_no_mass() -> None:
    logits = random_logits(3, 50)
    logits[:, ::2] = -torch.inf
    for setting in SETTINGS:
        assert torch.equal(filtered(logits, *[params(**setting)] * 3), reference(logits, setting))


def test_released_slot_filters_nothing_and_a_slot_may_have_many_rows() -> None:
    logits = random_logits(3, 60)
    filters = Filters(8, 60, CPU)
    filters.add(5, params(top_k=3, top_p=0.5, min_p=0.1))
    rows = logits.clone()
    filters.apply(rows, [5, 2, 5])
    assert torch.equal(rows[1], logits[1])
    assert torch.equal(rows[[0, 2]], reference(logits[[0, 2]], {"top_k": 3, "top_p": 0.5, "min_p": 0.1}))
    filters.release(5)
    untouched = logits.clone()
    filters.apply(untouched, [5, 2, 5])
    assert torch.equal(untouched, logits)
