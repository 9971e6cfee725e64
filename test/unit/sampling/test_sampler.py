"""The whole rule: distributions against exact ones in double precision, seeds, batches, and costs of the fast paths."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
import torch

from slipstream.errors import RequestError
from slipstream.messages.sampling import SamplingParams
from slipstream.sampling.paths import Paths
from slipstream.sampling.sampler import Sampler
from support.exact_sampling import exact_distribution, exact_joint
from support.operations import Operations
from support.sampled import sample

CPU = torch.device("cpu")
ChiSquare = Callable[[torch.Tensor, Sequence[float]], float]
VOCAB = 8
LOGITS = [1.2, 0.9, 0.6, 0.3, 0.1, -0.4, -0.9, -1.5]
PROMPT = [6, 1, 1]
NEUTRAL = SamplingParams(max_new_tokens=9, seed=0)
EVERYTHING = SamplingParams(
    max_new_tokens=9,
    seed=0,
    temperature=0.8,
    top_k=4,
    top_p=0.8,
    min_p=0.25,
    repetition_penalty=1.4,
    presence_penalty=0.5,
    frequency_penalty=0.3,
    logit_bias={6: 2.5, 3: -0.4},
    min_new_tokens=2,
    stop_token_ids=(0,),
)
MIXED: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.3},
    {"top_k": 40},
    {"top_p": 0.8},
    {"min_p": 0.05},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.9, "frequency_penalty": 0.2},
    {"logit_bias": {5: 4.0}},
    {"min_new_tokens": 30, "stop_token_ids": (1, 2)},
    {"top_k": 9, "top_p": 0.9, "min_p": 0.02, "temperature": 1.7},
    {"temperature": 0.0, "repetition_penalty": 2.0},
    {"top_k": 1},
    {"choice": 3},
    {"top_p": 0.99, "temperature": 1.4},
    {"temperature": 1e-5},
]


def exact_pairs(params: SamplingParams) -> list[float]:
    """Probabilities of pairs (first token, second token), first * VOCAB + second."""
    return exact_joint(params, lambda answer: LOGITS, PROMPT)


def pairs_of_positions(params: SamplingParams, num_draws: int) -> torch.Tensor:
    """Pairs that one request draws at many pairs of neighbouring positions, the second along a path of the first."""
    sampler = Sampler(1, VOCAB, CPU)
    sampler.add(0, params, PROMPT, len(PROMPT))
    logits = torch.tensor(LOGITS).repeat(num_draws, 1)
    starts = range(len(PROMPT), len(PROMPT) + 2 * num_draws, 2)
    first = sampler.draw(logits.clone(), [0] * num_draws, starts)
    second = sampler.draw(logits.clone(), [0] * num_draws, [start + 1 for start in starts], Paths.whole(first[:, None]))
    return first * VOCAB + second


def pairs_of_seeds(params: SamplingParams, num_draws: int) -> torch.Tensor:
    """Pairs drawn by one request for each seed, all in one batch."""
    sampler = Sampler(num_draws, VOCAB, CPU)
    slots = range(num_draws)
    for slot in slots:
        sampler.add(slot, msgspec.structs.replace(params, seed=slot), PROMPT, len(PROMPT))
    logits = torch.tensor(LOGITS).repeat(num_draws, 1)
    first = sample(sampler, logits.clone(), slots, [len(PROMPT)] * num_draws)
    second = sample(sampler, logits.clone(), slots, [len(PROMPT) + 1] * num_draws)
    return first * VOCAB + second


@pytest.fixture(scope="module")
def pairs_with_everything() -> torch.Tensor:
    return pairs_of_seeds(EVERYTHING, 24_000)


def test_all_features_together_draw_the_exact_joint_distribution(
    pairs_with_everything: torch.Tensor, chi_square: ChiSquare
) -> None:
    assert chi_square(pairs_with_everything, exact_pairs(EVERYTHING)) > 0.001


@pytest.mark.parametrize(
    "without",
    [
        {"temperature": 1.0},
        {"top_k": 0},
        {"top_p": 1.0},
        {"min_p": 0.0},
        {"repetition_penalty": 1.0},
        {"presence_penalty": 0.0},
        {"frequency_penalty": 0.0},
        {"logit_bias": {}},
        {"min_new_tokens": 0},
        {"min_new_tokens": 1},
    ],
    ids=str,
)
def test_each_feature_matters_to_that_test(
    without: dict[str, Any], pairs_with_everything: torch.Tensor, chi_square: ChiSquare
) -> None:
    assert chi_square(pairs_with_everything, exact_pairs(msgspec.structs.replace(EVERYTHING, **without))) < 1e-6


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.8},
        {"top_k": 4},
        {"top_p": 0.7},
        {"min_p": 0.4},
        {"repetition_penalty": 1.8},
        {"presence_penalty": 1.2},
        {"frequency_penalty": -0.8},
        {"logit_bias": {7: 3.0}},
    ],
    ids=str,
)
def test_each_feature_alone_draws_the_exact_joint_distribution(fields: dict[str, Any], chi_square: ChiSquare) -> None:
    params = msgspec.structs.replace(NEUTRAL, **fields)
    assert chi_square(pairs_of_positions(params, 25_000), exact_pairs(params)) > 0.001
    if fields:  # negative control: the feature ignored
        assert chi_square(pairs_of_positions(NEUTRAL, 25_000), exact_pairs(params)) < 1e-6


def test_probabilities_are_the_exact_ones_of_each_row() -> None:
    answers = [[], [1], [4, 4]]
    sampler = Sampler(4, VOCAB, CPU)
    rows: list[tuple[int, list[int]]] = []
    for slot, params in enumerate([EVERYTHING, NEUTRAL, msgspec.structs.replace(EVERYTHING, temperature=0.0)]):
        sampler.add(slot, params, PROMPT, len(PROMPT))
        rows += [(slot, answer) for answer in answers]
    paths = Paths(
        torch.tensor([[*answer, 0, 0][:2] for _, answer in rows]),
        torch.tensor([[True] * len(answer) + [False] * (2 - len(answer)) for _, answer in rows]),
    )
    slots, positions = [slot for slot, _ in rows], [len(PROMPT) + len(answer) for _, answer in rows]
    logits = torch.tensor([LOGITS] * len(rows))
    found = sampler.probabilities(logits, slots, positions, paths)
    for (slot, answer), probs in zip(rows, found, strict=True):
        params = [EVERYTHING, NEUTRAL, msgspec.structs.replace(EVERYTHING, temperature=0.0, min_new_tokens=0)][slot]
        expected = torch.tensor(exact_distribution(params, LOGITS, PROMPT, answer))
        torch.testing.assert_close(probs, expected, msg=f"slot {slot}, {answer}")
    assert [sampler.uses_paths([slot]) for slot in range(4)] == [True, False, True, False]


@pytest.mark.parametrize("rejection", [False, True])
def test_drafts_are_drawn_by_the_target_rule_or_independently_with_their_distribution(rejection: bool) -> None:
    n, vocab = 400, 50
    sampler = Sampler(2, vocab, CPU, rejection_sampling=rejection)
    for slot, temperature in enumerate([1.0, 0.0]):
        sampler.add(slot, SamplingParams(max_new_tokens=9, seed=1, temperature=temperature, top_k=20), [0], 1)
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(0)).repeat(n, 1)
    for slot in range(2):
        of_rows = [slot] * n, range(n)
        drawn = sampler.draw(logits.clone(), *of_rows)
        token_ids, probs = sampler.propose(logits.clone(), *of_rows)
        if rejection:
            assert probs is not None
            assert torch.equal(probs, sampler.probabilities(logits.clone(), *of_rows))
            assert (probs.gather(1, token_ids[:, None]) > 0).all()
        else:
            assert probs is None
        same = (token_ids == drawn).double().mean().item()
        if rejection and slot == 0:
            assert same == pytest.approx(float((probs[0] ** 2).sum()), abs=0.1)  # type: ignore[index]
        else:
            assert same == 1.0


def test_temperature_zero_is_the_first_maximum_and_knows_no_noise() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0]]).repeat(3, 1)
    sampler = Sampler(3, 4, CPU)
    for slot, temperature in enumerate([0.0, 0.0, 1e-45]):
        params = SamplingParams(max_new_tokens=9, seed=slot, temperature=temperature, top_k=2, top_p=0.1, min_p=0.5)
        sampler.add(slot, params, [1], 1)
    for position in range(1, 50):
        assert sample(sampler, logits.clone(), [0, 1, 2], [position] * 3).tolist() == [1, 1, 1]


def test_tiny_temperatures_neither_overflow_nor_lose_near_ties() -> None:
    sampler = Sampler(2, 3, CPU)
    sampler.add(0, SamplingParams(max_new_tokens=9, seed=1, temperature=1e-37), [0], 1)
    sampler.add(1, SamplingParams(max_new_tokens=9, seed=1, temperature=1e-6), [0], 1)
    gap = 2.0**-19  # two units in the last place of 16: at temperature 1e-6 the ratio is exp(1.9)
    drawn = torch.stack(
        [
            sample(sampler, torch.tensor([[5.0, 80.0, 79.9], [16.0, 16.0 - gap, 15.9]]), [0, 1], [position] * 2)
            for position in range(1, 2001)
        ]
    )
    assert (drawn[:, 0] == 1).all()
    share = (drawn[:, 1] == 1).double().mean().item()
    assert share == pytest.approx(1 / (1 + math.exp(gap / 1e-6)), abs=0.03)


@pytest.mark.parametrize("vocab", [1003, 4096])
def test_a_request_draws_the_same_tokens_alone_and_in_any_batch(vocab: int) -> None:
    steps, n = 12, len(MIXED)
    logits = torch.randn(steps, n, vocab, generator=torch.Generator().manual_seed(vocab)) * 4
    requests = [SamplingParams(max_new_tokens=99, seed=100 + i // 3, **fields) for i, fields in enumerate(MIXED)]
    prompts = [list(range(i, i + 5 + i)) for i in range(n)]
    batch = Sampler(n + 4, vocab, CPU)
    for i, (params, prompt) in enumerate(zip(requests, prompts, strict=True)):
        batch.add(n + 3 - i, params, prompt, len(prompt))
    order = list(range(n))
    together: list[list[int]] = [[] for _ in order]
    for step in range(steps):
        order = order[5:] + order[:5]
        positions = [len(prompts[i]) + step for i in order]
        tokens = sample(batch, logits[step, order], [n + 3 - i for i in order], positions).tolist()
        for i, token in zip(order, tokens, strict=True):
            together[i].append(token)
    for i, (params, prompt) in enumerate(zip(requests, prompts, strict=True)):
        alone = Sampler(1, vocab, CPU)
        alone.add(0, params, prompt, len(prompt))
        found = [int(sample(alone, logits[s, i : i + 1].clone(), [0], [len(prompt) + s])) for s in range(steps)]
        assert found == together[i], MIXED[i]


@pytest.mark.parametrize("fields", MIXED, ids=str)
def test_preemption_changes_nothing(fields: dict[str, Any]) -> None:
    steps, vocab, prompt = 16, 60, [1, 2, 3]
    logits = torch.randn(steps, 1, vocab, generator=torch.Generator().manual_seed(2)) * 2
    params = SamplingParams(max_new_tokens=99, seed=5, **fields)

    def run(preempt_at: int | None) -> list[int]:
        sampler, slot, tokens = Sampler(3, vocab, CPU), 0, list(prompt)
        sampler.add(slot, params, tokens, 3)
        for step in range(steps):
            if step == preempt_at:
                sampler.release(slot)
                sampler.add(0, SamplingParams(max_new_tokens=9, seed=9, presence_penalty=2.0), [7, 8], 1)
                slot = 2
                sampler.add(slot, params, tokens, 3)
            tokens += sample(sampler, logits[step].clone(), [slot], [len(tokens)]).tolist()
        return tokens

    assert run(None) == run(7) == run(1)


def test_draw_along_a_path_equals_drawing_and_recording_one_by_one() -> None:
    params = msgspec.structs.replace(EVERYTHING, seed=3, min_new_tokens=3)
    row = torch.tensor([LOGITS])
    one_by_one, along = Sampler(1, VOCAB, CPU), Sampler(1, VOCAB, CPU)
    for sampler in (one_by_one, along):
        sampler.add(0, params, PROMPT, 3)
    tokens = [int(sample(one_by_one, row.clone(), [0], [3 + step])) for step in range(6)]
    paths = Paths(torch.tensor([tokens] * 6), torch.ones(6, 6, dtype=torch.bool).tril(-1))
    for _ in range(2):  # draw records nothing
        assert along.draw(row.repeat(6, 1), [0] * 6, range(3, 9), paths).tolist() == tokens
    along.record([0] * 6, torch.tensor(tokens))
    assert int(sample(along, row.clone(), [0], [9])) == int(sample(one_by_one, row.clone(), [0], [9]))


def test_seed_choice_and_position_each_change_the_draw() -> None:
    vocab = 500
    sampler = Sampler(3, vocab, CPU)
    for slot, (seed, choice) in enumerate([(1, 0), (2, 0), (1, 1)]):
        sampler.add(slot, SamplingParams(max_new_tokens=9, seed=seed, choice=choice), [0], 1)
    drawn = [sample(sampler, torch.zeros(3, vocab), [0, 1, 2], [position] * 3).tolist() for position in range(200)]
    columns = list(zip(*drawn, strict=True))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert sum(a == b for a, b in zip(columns[one], columns[other], strict=True)) < 6  # 0.4 expected
    assert len(set(columns[0])) > 140  # of 200 draws from 500 equal tokens about 165 differ


def test_minimum_tokens_of_a_whole_vocabulary_still_draws() -> None:
    sampler = Sampler(1, 4, CPU)
    sampler.add(0, SamplingParams(max_new_tokens=9, seed=1, min_new_tokens=5, stop_token_ids=(0, 1, 2, 3)), [0], 1)
    drawn = {int(sample(sampler, torch.zeros(1, 4), [0], [position])) for position in range(1, 40)}
    assert drawn == {0, 1, 2, 3}


def test_a_row_of_nan_draws_an_id_inside_the_vocabulary_and_leaves_the_others_alone() -> None:
    for temperature in (0.0, 1.0):
        sampler = Sampler(2, 50, CPU)
        for slot in range(2):
            sampler.add(slot, SamplingParams(max_new_tokens=9, seed=1, temperature=temperature, top_p=0.9), [0], 1)
        good = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
        expected = int(sample(sampler, good.clone(), [1], [1]))
        drawn = sample(sampler, torch.cat([torch.full((1, 50), torch.nan), good]), [0, 1], [1, 1]).tolist()
        assert 0 <= drawn[0] < 50
        assert drawn[1] == expected


@pytest.mark.parametrize(
    ("fields", "token_ids"),
    [({"logit_bias": {9: 1.0}, "presence_penalty": 1.0}, [0]), ({"presence_penalty": 1.0}, [9])],
)
def test_a_refused_request_leaves_its_slot_empty(fields: dict[str, Any], token_ids: list[int]) -> None:
    sampler = Sampler(1, 4, CPU)
    with pytest.raises(RequestError, match="9"):
        sampler.add(0, SamplingParams(max_new_tokens=9, seed=1, **fields), token_ids, 1)
    sampler.add(0, SamplingParams(max_new_tokens=9, seed=1, temperature=0.0), [0], 1)
    assert int(sample(sampler, torch.tensor([[1.0, 0.9, 0.0, 0.0]]), [0], [1])) == 0


def test_a_greedy_batch_costs_one_argmax() -> None:
    sampler = Sampler(16, 100, CPU)
    for slot in range(16):
        sampler.add(slot, SamplingParams(max_new_tokens=9, seed=slot, temperature=0.0, top_k=5), [0], 1)
    logits = torch.randn(16, 100)
    with Operations() as operations:
        sample(sampler, logits, range(16), [1] * 16)
    assert operations.counts == {"argmax": 1}


def test_plain_temperature_sorts_nothing_and_features_cost_only_their_users() -> None:
    sampler = Sampler(16, 100, CPU)
    for slot in range(16):
        sampler.add(slot, SamplingParams(max_new_tokens=9, seed=slot, temperature=0.7), [0], 1)
    with Operations() as operations:
        sample(sampler, torch.randn(16, 100), range(16), [1] * 16)
    assert not {"sort", "topk", "cumsum", "_softmax", "where"} & set(operations.counts)
    plain = sum(operations.counts.values())
    sampler.add(3, SamplingParams(max_new_tokens=9, seed=3, temperature=0.7, top_k=5), [0], 1)
    with Operations() as operations:
        sample(sampler, torch.randn(16, 100), range(16), [1] * 16)
    assert plain < sum(operations.counts.values()) < plain + 25
    assert operations.counts["topk"] == 1


def test_no_rows() -> None:
    assert sample(Sampler(1, 4, CPU), torch.zeros(0, 4), [], []).tolist() == []
