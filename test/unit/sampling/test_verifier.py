"""Verification as a whole: speculation on equals off, and what caps, simulations and broken logits do to a run.

The model is a table of logits by the token before.
"""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from slipstream.messages.sampling import SamplingParams
from slipstream.sampling.candidates import Candidates
from slipstream.sampling.paths import Paths
from slipstream.sampling.sampler import Sampler
from slipstream.sampling.simulated import Simulation
from slipstream.sampling.verifier import Verifier, expand_rows
from slipstream.sampling.verify import Accepted
from support.operations import Operations
from support.sampled import sample

CPU = torch.device("cpu")
VOCAB = 40
TARGET = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(1)) * 2
DRAFT = TARGET + torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(2))
PROMPT = [3, 9, 9, 4]
MIXED: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.7, "top_k": 7},
    {"top_p": 0.8, "min_p": 0.02},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4, "temperature": 0.0},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4},
    {"logit_bias": {7: 3.0, 1: -2.0}, "min_new_tokens": 9, "stop_token_ids": (7, 8, 11)},
    {"top_k": 9, "top_p": 0.9, "min_p": 0.02, "presence_penalty": 1.5, "temperature": 1.4, "choice": 2},
]


class Requests:
    """Requests that decode together, as the worker runs them; tokens[i] starts with the prompt."""

    def __init__(
        self, fields: Sequence[dict[str, Any]], *, rejection: bool = False, simulation: Simulation | None = None
    ) -> None:
        self.sampler = Sampler(2 * len(fields), VOCAB, CPU, rejection)
        self.verifier = Verifier(self.sampler, simulation)
        self.slots = [2 * i + 1 for i in range(len(fields))]
        self.tokens = [list(PROMPT) for _ in fields]
        for slot, changed in zip(self.slots, fields, strict=True):
            params = SamplingParams(max_new_tokens=99, seed=slot // 2, **changed)
            self.sampler.add(slot, params, PROMPT, len(PROMPT))
            self.verifier.add(slot, params)

    def step(self, candidates: Candidates, which: Sequence[int] | None = None) -> list[list[int]]:
        """Verify the candidates of the requests number `which` and commit; returns the runs."""
        which = range(len(self.tokens)) if which is None else which
        slots = [self.slots[i] for i in which]
        bonus = torch.tensor([self.tokens[i][-1] for i in which])
        logits = TARGET[candidates.flat_token_ids(bonus)]
        found = self.verifier.verify(logits, slots, [len(self.tokens[i]) for i in which], candidates)
        assert found.is_finite.all()
        runs = runs_of(found)
        for i, run in zip(which, runs, strict=True):
            self.tokens[i] += run
            self.sampler.record([self.slots[i]] * len(run), torch.tensor(run))
        return runs


def runs_of(found: Accepted) -> list[list[int]]:
    counts = found.num_tokens.tolist()
    return [run[:count] for run, count in zip(found.token_ids.tolist(), counts, strict=True)]


def decode(fields: Sequence[dict[str, Any]], length: int) -> list[list[int]]:
    """What the plain sampler generates, each request alone and token by token."""
    answers = []
    for number, changed in enumerate(fields):
        sampler, tokens = Sampler(1, VOCAB, CPU), list(PROMPT)
        sampler.add(0, SamplingParams(max_new_tokens=99, seed=number, **changed), PROMPT, len(PROMPT))
        while len(tokens) < len(PROMPT) + length:
            tokens.append(int(sample(sampler, TARGET[tokens[-1:]], [0], [len(tokens)])))
        answers.append(tokens)
    return answers


def drafts(requests: Requests, which: Sequence[int], draw: random.Random, *, is_tree: bool) -> Candidates:
    """Random numbers of drafts, partly from the draft's logits along their own path, partly at random."""
    counts = [draw.choice([0, 1, 2, 3, 5]) for _ in which]
    width = max(counts)
    token_ids = torch.zeros(len(which), width, dtype=torch.int64)
    parents = torch.arange(width).repeat(len(which), 1)
    for at, i in enumerate(which):
        paths: list[list[int]] = [[]]
        children: dict[int, set[int]] = {}
        for node in range(counts[at]):
            parent = draw.randint(max(0, node - 1), node) if is_tree else node
            path, first = paths[parent], len(requests.tokens[i])
            before = path[-1] if path else requests.tokens[i][-1]
            scores = requests.sampler.scores(
                DRAFT[[before]], [requests.slots[i]], [first + len(path)], Paths.whole(torch.tensor([path]).long())
            )
            best = [
                token for token in scores[0].argsort(descending=True).tolist() if token not in children.get(parent, ())
            ]
            token = best[0] if draw.random() < 0.8 else draw.choice(best)
            children.setdefault(parent, set()).add(token)
            paths.append([*path, token])
            token_ids[at, node], parents[at, node] = token, parent
    return Candidates(tuple(counts), token_ids, parents, is_chain=not is_tree)


@pytest.mark.parametrize("cap", [None, 0, 1, 2])
@pytest.mark.parametrize("is_tree", [False, True])
def test_speculation_changes_no_token_whatever_is_drafted(is_tree: bool, cap: int | None) -> None:
    length = 24
    expected = decode(MIXED, length)
    draw = random.Random(length)
    requests = Requests([{**changed, "accept_cap": cap} for changed in MIXED])
    runs: list[list[int]] = []
    while unfinished := [i for i, tokens in enumerate(requests.tokens) if len(tokens) < len(PROMPT) + length]:
        draw.shuffle(unfinished)
        runs += requests.step(drafts(requests, unfinished, draw, is_tree=is_tree), unfinished)
    for found, tokens in zip(requests.tokens, expected, strict=True):
        assert found[: len(tokens)] == tokens
    longest = max(map(len, runs))
    assert longest == cap + 1 if cap is not None else longest >= 4


def test_greedy_and_sampled_requests_follow_perfect_drafts_to_the_end() -> None:
    expected = decode(MIXED, 7)
    requests = Requests(MIXED)
    ahead = torch.tensor([tokens[len(PROMPT) : -1] for tokens in expected])
    runs = requests.step(Candidates.chain((6,) * len(MIXED), ahead))
    assert [PROMPT + run for run in runs] == expected


def test_caps_are_those_of_their_slots_and_go_with_them() -> None:
    fields = [{"temperature": 0.0, "accept_cap": cap} for cap in (None, 0, 2, 9)]
    ahead = decode([{"temperature": 0.0}], 5)[0][len(PROMPT) :]
    chain = Candidates.chain((4,) * 4, torch.tensor([ahead[:4]] * 4))
    requests = Requests(fields)
    assert [len(run) for run in requests.step(chain)] == [5, 1, 3, 5]
    requests = Requests(fields)
    requests.verifier.release(requests.slots[1])
    requests.verifier.add(requests.slots[2], SamplingParams(max_new_tokens=9, seed=0))
    assert [len(run) for run in requests.step(chain)] == [5, 5, 5, 5]


def rejection_chain(requests: Requests, which: Sequence[int], length: int) -> Candidates:
    before = torch.tensor([requests.tokens[i][-1] for i in which])
    slots, firsts = [requests.slots[i] for i in which], [len(requests.tokens[i]) for i in which]
    token_ids, probs = torch.zeros(len(which), 0, dtype=torch.int64), []
    for step in range(length):
        positions = [first + step for first in firsts]
        before, q = requests.sampler.propose(DRAFT[before], slots, positions, Paths.whole(token_ids))
        token_ids = torch.cat((token_ids, before[:, None]), dim=1)
        assert q is not None
        probs.append(q)
    return Candidates.chain((length,) * len(which), token_ids, torch.stack(probs, 1) if probs else None)


def test_rejection_sampling_without_drafts_is_the_plain_rule() -> None:
    requests = Requests(MIXED, rejection=True)
    for _ in range(10):
        requests.step(Candidates.none(len(MIXED), CPU))
    assert requests.tokens == decode(MIXED, 10)


def test_rejection_sampling_of_greedy_requests_is_the_exact_rule() -> None:
    fields = [changed for changed in MIXED if changed.get("temperature") == 0.0]
    requests = Requests(fields, rejection=True)
    longest = 0
    for _ in range(10):
        longest = max(longest, *map(len, requests.step(rejection_chain(requests, range(len(fields)), 3))))
    for found, expected in zip(requests.tokens, decode(fields, 40), strict=True):
        assert found == expected[: len(found)]
    assert longest >= 2


@pytest.mark.parametrize("cap", [0, 1, None])
def test_rejection_sampling_of_a_request_is_the_same_in_any_batch(cap: int | None) -> None:
    fields = [{**changed, "accept_cap": cap} for changed in MIXED]
    together, apart = Requests(fields, rejection=True), Requests(fields, rejection=True)
    runs: list[list[int]] = []
    for _ in range(8):
        runs += together.step(rejection_chain(together, range(len(fields)), 3))
        for i in reversed(range(len(fields))):
            apart.step(rejection_chain(apart, [i], 3), [i])
    assert together.tokens == apart.tokens
    longest = max(map(len, runs))
    assert longest == (4 if cap is None else cap + 1)


def test_a_capped_run_of_rejection_sampling_ends_with_the_draft_that_would_stand() -> None:
    capped, free = (Requests([{"accept_cap": cap}] * 50, rejection=True) for cap in (1, None))
    short, long = (requests.step(rejection_chain(requests, range(50), 3)) for requests in (capped, free))
    assert [run[:2] for run in long] == short
    assert max(map(len, long)) == 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_simulated_pattern_is_accepted_whatever_is_drawn(temperature: float) -> None:
    requests = Requests([{"temperature": temperature}] * 2, simulation=Simulation(None, (0, 3, 1, 5)))
    candidates = Candidates.chain((4, 2), torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]))
    plain = Requests([{"temperature": temperature}] * 2)
    for wanted in (0, 3, 1, 5):
        runs = requests.step(candidates)
        for i, drafted in enumerate(([1, 2, 3, 4], [5, 6])):
            accepted = drafted[:wanted]
            assert runs[i][:-1] == accepted
            plain.tokens[i] += accepted  # after them comes what the target draws there
            plain.step(Candidates.none(1, CPU), [i])
            assert plain.tokens[i] == requests.tokens[i]


def test_a_simulated_length_is_met_on_average_and_knows_seeds_and_caps() -> None:
    n, steps = 64, 30
    fields: list[dict[str, Any]] = [{"accept_cap": 1} if i < 8 else {} for i in range(n)]
    requests = Requests(fields, simulation=Simulation(2.7, ()))
    again = Requests(fields[:10], simulation=Simulation(2.7, ()))
    chain = Candidates.chain((4,) * n, torch.ones(n, 4, dtype=torch.int64))
    lengths = torch.tensor([[len(run) for run in requests.step(chain)] for _ in range(steps)])
    assert lengths[:, :8].unique().tolist() == [2]
    assert lengths[:, 8:].unique().tolist() == [2, 3]
    assert lengths[:, 8:].double().mean().item() == pytest.approx(2.7, abs=5 * 0.46 / (steps * (n - 8)) ** 0.5)
    for i in range(10):
        alone = Candidates.chain((4,), chain.token_ids[:1])
        assert [len(again.step(alone, [i])[0]) for _ in range(steps)] == lengths[:, i].tolist()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("rejection", [False, True])
def test_logits_that_are_not_finite_end_those_whose_accepted_path_has_them(rejection: bool, value: float) -> None:
    fields = [{"temperature": 0.0}, {"top_p": 0.9}, {"presence_penalty": 1.0}, {"temperature": 0.0}]
    expected = decode(fields, 4)
    ahead = torch.tensor([tokens[len(PROMPT) : -1] for tokens in expected])
    ahead[3, 1] = (ahead[3, 1] + 1) % VOCAB  # the last request accepts one draft
    chain = Candidates.chain((3,) * 4, ahead)

    def verified(broken: Sequence[int]) -> Accepted:
        requests = Requests(fields, rejection=rejection)
        logits = TARGET[chain.flat_token_ids(torch.tensor([PROMPT[-1]] * 4))]
        for row in broken:
            logits[row, 5] = value
        return requests.verifier.verify(logits, requests.slots, [len(PROMPT)] * 4, chain)

    whole = verified([])
    assert whole.is_finite.all()
    found = verified([2, 3 * 4 + 3])  # the third node of the first request; of the last one beyond what it accepts
    assert found.is_finite.tolist() == [False, True, True, True]
    assert runs_of(found)[1:] == runs_of(whole)[1:]
    assert found.token_ids.min() >= 0 and found.token_ids.max() < VOCAB
    assert verified([4]).is_finite.tolist() == [True, False, True, True]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("rejection", "pattern"), [(False, ()), (True, ()), (False, (2,))])
def test_whole_rows_of_no_numbers_harm_nobody_else(rejection: bool, pattern: tuple[int, ...], value: float) -> None:
    """With every sampling parameter, for each request in turn all logits at its root are broken."""
    chain = Candidates.chain((3,) * len(MIXED), torch.randint(VOCAB, (len(MIXED), 3)))

    def verified(broken: int | None) -> Accepted:
        requests = Requests(MIXED, rejection=rejection, simulation=Simulation.of(None, pattern))
        logits = TARGET[chain.flat_token_ids(torch.tensor([PROMPT[-1]] * len(MIXED)))]
        if broken is not None:
            logits[4 * broken] = value
        return requests.verifier.verify(logits, requests.slots, [len(PROMPT)] * len(MIXED), chain)

    whole = runs_of(verified(None))
    for broken in range(len(MIXED)):
        found = verified(broken)
        assert found.is_finite.tolist() == [number != broken for number in range(len(MIXED))]
        assert found.token_ids.min() >= 0 and found.token_ids.max() < VOCAB
        assert [run for number, run in enumerate(runs_of(found)) if number != broken] == [
            run for number, run in enumerate(whole) if number != broken
        ]


def test_roots_behind_the_drafts_draw_as_ever() -> None:
    requests = Requests(MIXED[:3])
    chain = Candidates.chain((2,), torch.tensor([[1, 2]]))
    runs = requests.step(chain.with_roots(2))
    assert [run[0] for run in runs] == [tokens[-1] for tokens in decode(MIXED[:3], 1)]


def test_rows_of_a_forward_know_their_slots_and_positions() -> None:
    chains = Candidates.chain((1, 2), torch.zeros(2, 2, dtype=torch.int64))
    assert expand_rows([4, 7], [10, 20], chains) == ([4, 4, 7, 7, 7], [10, 11, 20, 21, 22])
    parents = torch.tensor([[0, 0, 1, 3], [0, 0, 2, 0]])
    trees = Candidates((4, 3), torch.arange(8).view(2, 4), parents, is_chain=False)
    assert expand_rows([4, 7], [10, 20], trees) == ([4] * 5 + [7] * 4, [10, 11, 11, 12, 13, 20, 21, 21, 22])


@pytest.mark.parametrize(("num_drafts", "most"), [(0, 14), (3, 25)])
def test_a_greedy_batch_costs_a_fixed_handful_of_operations(num_drafts: int, most: int) -> None:
    costs = []
    for n in (1, 16):
        requests = Requests([{"temperature": 0.0}] * n)
        ids = torch.zeros(n, num_drafts, dtype=torch.int64)
        chains = Candidates.chain((num_drafts,) * n, ids)
        logits: Tensor = torch.randn(n * (num_drafts + 1), VOCAB)
        with Operations() as operations:
            requests.verifier.verify(logits, requests.slots, [5] * n, chains)
        costs.append(sum(operations.counts.values()))
    assert costs[0] == costs[1] <= most
    assert operations.counts["argmax"] == 1
