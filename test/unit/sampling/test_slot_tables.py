"""What the draw kernels see of the slots, and which slots they may draw for."""

from typing import Any

import pytest
import torch

from slipstream.layers.upload import upload
from slipstream.messages.sampling import SamplingParams
from slipstream.sampling.noise import child_key, child_keys, signed
from slipstream.sampling.sampler import Sampler

CPU = torch.device("cpu")


def params(**changes: Any) -> SamplingParams:
    return SamplingParams(**({"max_new_tokens": 4, "seed": 7} | changes))


def row(sampler: Sampler, slot: int) -> tuple[float, ...]:
    tables = sampler.tables()
    of_slot = (tables.temperature[slot], tables.top_k[slot], tables.top_p[slot], tables.min_p[slot])
    return tuple(round(value.item(), 6) for value in of_slot)


def test_tables_follow_the_slots() -> None:
    sampler = Sampler(3, 50, CPU)
    tables = sampler.tables()
    off = (0.0, 0, 1.0, 0.0)
    assert [row(sampler, slot) for slot in range(3)] == [off] * 3
    sampler.add(1, params(temperature=0.5, top_k=9, top_p=0.75, min_p=0.125), [1], 1)
    assert row(sampler, 1) == (0.5, 9, 0.75, 0.125)
    assert tables.keys[1].item() == child_key(7, 0)
    sampler.add(1, params(temperature=0.0, top_k=9, top_p=0.75, min_p=0.125), [1], 1)
    assert row(sampler, 1) == off
    sampler.add(1, params(top_k=50), [1], 1)  # the whole vocabulary
    assert row(sampler, 1) == (1.0, 0, 1.0, 0.0)
    sampler.add(1, params(temperature=1.5, top_p=0.5), [1], 1)
    sampler.release(1)
    assert row(sampler, 1) == off
    assert all(value is vars(tables)[name] for name, value in vars(sampler.tables()).items())


def test_keys_of_the_host_are_those_of_the_device() -> None:
    for seed in (0, 1, -1, 2**63, 2**64 - 1, 123456789 << 70):
        keys = child_keys(torch.tensor([signed(seed)]), torch.tensor([0, 1, 5, -5]))
        assert keys.tolist() == [child_key(seed, index) for index in (0, 1, 5, -5)]


@pytest.mark.parametrize(
    "changes",
    [
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.5},
        {"frequency_penalty": -0.5},
        {"logit_bias": {3: 1.0}},
        {"min_new_tokens": 2, "stop_token_ids": (1,)},
    ],
)
def test_slots_with_more_than_the_tables_say_are_not_plain(changes: dict[str, Any]) -> None:
    sampler = Sampler(3, 50, CPU)
    sampler.add(0, params(temperature=0.7, top_k=3, top_p=0.9, min_p=0.1), [1], 1)
    sampler.add(1, params(**changes), [1], 1)
    assert sampler.is_plain([0, 2]) and not sampler.is_plain([0, 1])
    sampler.release(1)
    assert sampler.is_plain([0, 1, 2])


def test_nothing_is_plain_with_rejection_sampling() -> None:
    assert not Sampler(1, 5, CPU, rejection_sampling=True).is_plain([0])


def test_upload() -> None:
    assert torch.equal(upload([3, 4], torch.int32, CPU), torch.tensor([3, 4], dtype=torch.int32))
    assert torch.equal(upload([True, False], torch.bool, CPU), torch.tensor([True, False]))
    assert upload([], torch.float32, CPU).shape == (0,)
