"""Penalties against transformers' repetition processor and OpenAI's formula."""

from collections.abc import Sequence

import pytest
import torch
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from slipstream.errors import RequestError
from slipstream.messages.sampling import SamplingParams
from slipstream.sampling.paths import Paths
from slipstream.sampling.penalties import Penalties

CPU = torch.device("cpu")
VOCAB = 40
PROMPT = [3, 5, 5, 7]
ANSWER = [5, 9, 9, 9, 11]


def params(**fields: float) -> SamplingParams:
    return SamplingParams(max_new_tokens=9, seed=0, **fields)  # type: ignore[arg-type]


def random_logits(rows: int) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(rows)) * 3


def applied(setting: SamplingParams, logits: torch.Tensor, token_ids: Sequence[int], prompt_len: int) -> torch.Tensor:
    penalties = Penalties(2, VOCAB, CPU)
    penalties.add(1, setting, token_ids, prompt_len)
    result = logits.clone()
    penalties.apply(result, [1] * len(logits))
    return result


def openai(logits: torch.Tensor, answer: Sequence[int], frequency: float, presence: float) -> torch.Tensor:
    result = logits.clone()
    for token in range(VOCAB):
        count = list(answer).count(token)
        result[:, token] -= count * frequency + (count > 0) * presence
    return result


@pytest.mark.parametrize("penalty", [0.7, 1.3, 2.0])
def test_repetition_equals_transformers_on_prompt_and_answer(penalty: float) -> None:
    logits = random_logits(3)
    found = applied(params(repetition_penalty=penalty), logits, PROMPT + ANSWER, len(PROMPT))
    ids = torch.tensor([PROMPT + ANSWER] * 3)
    torch.testing.assert_close(found, RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone()))
    assert (found != logits).any(0).nonzero().flatten().tolist() == [3, 5, 7, 9, 11]


@pytest.mark.parametrize(("frequency", "presence"), [(0.5, 0.0), (0.0, 0.8), (-0.4, 1.5), (2.0, -2.0)])
def test_frequency_and_presence_equal_the_formula_on_the_answer(frequency: float, presence: float) -> None:
    logits = random_logits(3)
    setting = params(frequency_penalty=frequency, presence_penalty=presence)
    found = applied(setting, logits, PROMPT + ANSWER, len(PROMPT))
    torch.testing.assert_close(found, openai(logits, ANSWER, frequency, presence))
    assert torch.equal(found[:, [3, 7]], logits[:, [3, 7]])  # of the prompt alone
    assert not torch.equal(found, logits)


def test_repetition_comes_before_the_other_two() -> None:
    logits = random_logits(2)
    setting = params(repetition_penalty=1.5, frequency_penalty=0.3, presence_penalty=0.7)
    ids = torch.tensor([PROMPT + ANSWER] * 2)
    expected = openai(RepetitionPenaltyLogitsProcessor(1.5)(ids, logits.clone()), ANSWER, 0.3, 0.7)
    torch.testing.assert_close(applied(setting, logits, PROMPT + ANSWER, len(PROMPT)), expected)


def test_recorded_tokens_count_like_rebuilt_ones() -> None:
    setting = params(repetition_penalty=1.2, frequency_penalty=0.3, presence_penalty=0.7)
    logits = random_logits(1)
    penalties = Penalties(4, VOCAB, CPU)
    penalties.add(2, setting, PROMPT, len(PROMPT))
    penalties.add(0, params(), PROMPT, len(PROMPT))  # uses nothing
    penalties.record([2, 0], torch.tensor([5, 1]))
    penalties.record([0, 2, 2, 2, 2], torch.tensor([2, 9, 9, 9, 11]))
    found = logits.clone()
    penalties.apply(found, [2])
    assert torch.equal(found, applied(setting, logits, PROMPT + ANSWER, len(PROMPT)))


def test_paths_count_for_their_own_row_and_are_not_kept() -> None:
    setting = params(repetition_penalty=1.2, frequency_penalty=0.3, presence_penalty=0.7)
    logits = random_logits(1).repeat(4, 1)
    penalties = Penalties(4, VOCAB, CPU)
    penalties.add(2, setting, PROMPT, len(PROMPT))
    paths = [[], [20], [1, 2], [20, 20]]
    found = logits.clone()
    # what is not counted lies on the paths of other rows, or is padding
    token_ids = torch.tensor([[0, 0, 0], [9, 20, 0], [1, 2, 0], [20, 5, 20]])
    counted = torch.tensor([[0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool)
    penalties.apply(found, [2, 2, 0, 2], Paths(token_ids, counted))
    assert torch.equal(found[2], logits[2])
    for row in (0, 1, 3):
        assert torch.equal(found[row], applied(setting, logits[:1], PROMPT + paths[row], len(PROMPT))[0])
    again = logits.clone()
    penalties.apply(again, [2, 2, 2, 2])
    assert torch.equal(again, found[:1].repeat(4, 1))


def test_rows_do_not_influence_each_other() -> None:
    settings = [params(repetition_penalty=1.3), params(frequency_penalty=0.5), params(), params(presence_penalty=-1.0)]
    logits = random_logits(4)
    penalties = Penalties(4, VOCAB, CPU)
    for slot, setting in enumerate(settings):
        penalties.add(slot, setting, [slot, slot, *PROMPT, *ANSWER], 6)
    found = logits.clone()
    penalties.apply(found, [3, 2, 1, 0])
    for row, slot in enumerate([3, 2, 1, 0]):
        alone = applied(settings[slot], logits[row : row + 1], [slot, slot, *PROMPT, *ANSWER], 6)
        assert torch.equal(found[row], alone[0])


def test_only_users_take_memory_and_slots_are_reused_clean() -> None:
    setting = params(presence_penalty=1.0)
    penalties = Penalties(100, VOCAB, CPU)
    for slot in range(50):
        penalties.add(slot, params(), PROMPT, len(PROMPT))
    assert len(penalties._histories) == 0
    for slot in range(9):
        penalties.add(slot, setting, [slot], 0)
    most = len(penalties._histories)
    for _ in range(5):
        for slot in range(9):
            penalties.release(slot)
            penalties.add(slot + 20, setting, [slot + 20], 0)
            penalties.release(slot + 20)
            penalties.add(slot, setting, [slot + 1], 0)
    assert len(penalties._histories) == most <= 16
    zeros = torch.zeros(9, VOCAB)
    penalties.apply(zeros, range(9))
    assert torch.equal(zeros.nonzero(), torch.tensor([[slot, slot + 1] for slot in range(9)]))
    penalties.add(0, params(), [], 0)
    zeros = torch.zeros(1, VOCAB)
    penalties.apply(zeros, [0])
    assert not zeros.any()


@pytest.mark.parametrize("bad", [-1, VOCAB])
def test_ids_outside_the_vocabulary_are_refused(bad: int) -> None:
    penalties = Penalties(2, VOCAB, CPU)
    with pytest.raises(RequestError, match=r"\[0, 40\)"):
        penalties.add(0, params(presence_penalty=1.0), [1, bad], 2)
    untouched = torch.zeros(1, VOCAB)
    penalties.apply(untouched, [0])
    assert not untouched.any()
