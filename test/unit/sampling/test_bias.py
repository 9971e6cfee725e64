"""logit_bias against OpenAI's formula: logit + bias."""

import pytest
import torch

from slipstream.errors import RequestError
from slipstream.messages.sampling import SamplingParams
from slipstream.sampling.bias import LogitBias

CPU = torch.device("cpu")


def params(bias: dict[int, float]) -> SamplingParams:
    return SamplingParams(max_new_tokens=9, seed=0, logit_bias=bias)


def test_adds_the_bias_to_every_row_of_the_slot_and_to_no_other() -> None:
    bias = LogitBias(6, CPU)
    bias.add(3, params({0: 1.5, 5: -100.0}))
    bias.add(4, params({1: 2.0}))
    bias.add(7, params({}))
    logits = torch.zeros(4, 6)
    bias.apply(logits, [3, 7, 4, 3])
    assert logits.tolist() == [[1.5, 0, 0, 0, 0, -100.0], [0] * 6, [0, 2.0, 0, 0, 0, 0], [1.5, 0, 0, 0, 0, -100.0]]


def test_released_or_replaced_biases_are_gone() -> None:
    bias = LogitBias(6, CPU)
    bias.add(3, params({0: 1.5}))
    bias.add(3, params({1: 1.0}))
    bias.add(4, params({2: 1.0}))
    bias.release(4)
    logits = torch.zeros(2, 6)
    bias.apply(logits, [3, 4])
    assert logits.tolist() == [[0, 1.0, 0, 0, 0, 0], [0] * 6]


@pytest.mark.parametrize("bad", [-1, 6])
def test_ids_outside_the_vocabulary_are_refused_by_name(bad: int) -> None:
    with pytest.raises(RequestError, match=f"token id {bad}; this model's ids are 0 to 5") as refused:
        LogitBias(6, CPU).add(0, params({bad: 1.0}))
    assert refused.value.param == "logit_bias"
