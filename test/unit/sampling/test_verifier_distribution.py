"""Which pairs of tokens come out of verification, against exact probabilities, with every sampling parameter in play.

Requests with seeds of their own start from one prompt and generate two tokens: in one verify step, or in two if the
first accepts no draft. The target's logits depend on the token before; drafts come from a model with other logits.
Each test of a law has negative controls: with one thing broken, a tenth of the draws must be far from the law.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from slipstream.messages.sampling import SamplingParams
from slipstream.sampling import filters, verifier
from slipstream.sampling.bias import LogitBias
from slipstream.sampling.candidates import Candidates
from slipstream.sampling.min_tokens import MinTokens
from slipstream.sampling.noise import Noise, child_keys
from slipstream.sampling.paths import Paths
from slipstream.sampling.rejection import reject
from slipstream.sampling.sampler import Sampler
from slipstream.sampling.verifier import Verifier
from slipstream.sampling.verify import Accepted, verify
from support.exact_sampling import exact_joint

CPU = torch.device("cpu")
ChiSquare = Callable[[Tensor, Sequence[float]], float]
Break = Callable[[pytest.MonkeyPatch, Sampler], None]
SLOTS, ROUNDS = 2048, 10
VOCAB = 7
PROMPT = [5, 1, 1]
_generator = torch.Generator().manual_seed(4)
TARGET = torch.randn(VOCAB, VOCAB, generator=_generator)  # logits after each token
DRAFT = 0.6 * TARGET + 0.8 * torch.randn(VOCAB, VOCAB, generator=_generator)
PARAMS = SamplingParams(
    max_new_tokens=9,
    seed=0,
    temperature=1.3,
    top_k=5,
    top_p=0.85,
    min_p=0.25,
    repetition_penalty=1.5,
    presence_penalty=0.4,
    frequency_penalty=0.5,
    logit_bias={6: 1.0, 3: -0.6},
    min_new_tokens=1,
    stop_token_ids=(0,),
)


def exact(params: SamplingParams) -> list[float]:
    return exact_joint(params, lambda answer: TARGET[(PROMPT + list(answer))[-1]].tolist(), PROMPT)


class Requests:
    """SLOTS requests in one sampler. Between rounds they get new seeds, as add() would give them, but quicker."""

    def __init__(self, params: SamplingParams, *, rejection_sampling: bool) -> None:
        self.sampler = Sampler(SLOTS, VOCAB, CPU, rejection_sampling)
        for slot in range(SLOTS):
            self.sampler.add(slot, params, PROMPT, len(PROMPT))
        self._histories = self.sampler._penalties._histories.clone()

    def restart(self, round: int) -> None:
        seeds = torch.arange(round * SLOTS, (round + 1) * SLOTS)
        self.sampler._noise.keys.copy_(child_keys(seeds, torch.tensor(PARAMS.choice)))
        self.sampler._penalties._histories.copy_(self._histories)


@pytest.fixture(scope="module")
def requests() -> dict[bool, Requests]:
    return {rejection: Requests(PARAMS, rejection_sampling=rejection) for rejection in (False, True)}


def test_restarted_requests_are_those_of_their_seeds(requests: dict[bool, Requests]) -> None:
    requests[False].restart(3)
    fresh = Sampler(1, VOCAB, CPU)
    fresh.add(0, msgspec.structs.replace(PARAMS, seed=3 * SLOTS + 17), PROMPT, len(PROMPT))
    logits = TARGET[:1]
    expected = fresh.scores(logits.clone(), [0], [3])
    assert torch.equal(requests[False].sampler.scores(logits.clone(), [17], [3]), expected)


def draft_chain(sampler: Sampler, slots: Sequence[int], before: Tensor, first: int) -> Candidates:
    """Up to two drafts: slots 3, 7, ... have one, slots 0, 8, ... none."""
    drafts = torch.zeros(len(slots), 0, dtype=torch.int64)
    probs: list[Tensor] = []
    for step in range(2):
        paths = Paths.whole(drafts) if step else None
        token_ids, q = sampler.propose(DRAFT[before].clone(), slots, [first + step] * len(slots), paths)
        drafts, before = torch.cat((drafts, token_ids[:, None]), dim=1), token_ids
        if q is not None:
            probs.append(q)
    num_drafts = tuple(0 if slot % 8 == 0 else 1 if slot % 4 == 3 else 2 for slot in slots)
    return Candidates.chain(num_drafts, drafts, torch.stack(probs, 1) if probs else None)


def draft_tree(sampler: Sampler, slots: Sequence[int], before: Tensor, first: int) -> Candidates:
    """The two best of the first level, the two best after the second of them, the best after the first."""
    positions = [first] * len(slots)
    level = sampler.scores(DRAFT[before].clone(), slots, positions).topk(2, dim=-1).indices
    after = [
        sampler.scores(DRAFT[level[:, i]].clone(), slots, [first + 1] * len(slots), Paths.whole(level[:, i : i + 1]))
        for i in range(2)
    ]
    drafts = torch.cat((level, after[1].topk(2, dim=-1).indices, after[0].argmax(dim=-1, keepdim=True)), dim=1)
    num_drafts = tuple((5, 2, 4, 0)[slot % 4] for slot in slots)
    return Candidates(num_drafts, drafts, torch.tensor([0, 0, 2, 2, 1]).expand(len(slots), -1), is_chain=False)


def draft_without_q(*of: Any) -> Candidates:
    """The same chains; rejection sampling takes each draft for certain then, which is lossless too."""
    return dataclasses.replace(draft_chain(*of), draft_probs=None)


RULES: dict[str, tuple[Callable[..., Candidates], bool]] = {
    "exact chain": (draft_chain, False),
    "exact tree": (draft_tree, False),
    "rejection": (draft_chain, True),
    "rejection without q": (draft_without_q, True),
}


def target_logits(candidates: Candidates, before: Tensor) -> Tensor:
    return TARGET[candidates.flat_token_ids(before)]


def generate_pairs(
    requests: Requests, draft: Callable[..., Candidates], num_rounds: int = ROUNDS
) -> tuple[Tensor, float]:
    """SLOTS * num_rounds pairs, first token * VOCAB + second, and which part of them were one run."""
    sampler, every = requests.sampler, list(range(SLOTS))
    check = Verifier(sampler)
    pairs, whole = [], 0
    for round in range(num_rounds):
        requests.restart(round)
        before = torch.full((SLOTS,), PROMPT[-1])
        candidates = draft(sampler, every, before, 3)
        found = check.verify(target_logits(candidates, before), every, [3] * SLOTS, candidates)
        pair = found.token_ids[:, :2].clone()
        again = (found.num_tokens == 1).nonzero().flatten()
        slots = again.tolist()
        sampler.record(slots, pair[again, 0])
        candidates = draft(sampler, slots, pair[again, 0], 4)
        logits = target_logits(candidates, pair[again, 0])
        pair[again, 1] = check.verify(logits, slots, [4] * len(slots), candidates).token_ids[:, 0]
        pairs.append(pair[:, 0] * VOCAB + pair[:, 1])
        whole += SLOTS - len(slots)
    return torch.cat(pairs), whole / (SLOTS * num_rounds)


@pytest.mark.parametrize("rule", RULES)
def test_pairs_follow_the_exact_joint_distribution(
    rule: str, requests: dict[bool, Requests], chi_square: ChiSquare
) -> None:
    draft, rejection = RULES[rule]
    pairs, whole = generate_pairs(requests[rejection], draft)
    assert len(pairs) >= 20_000
    assert 0.15 < whole < 0.75  # accepted and refused drafts both matter
    assert chi_square(pairs, exact(PARAMS)) > 0.001


def nothing(*_: Any, **__: Any) -> None:
    """Instead of something that works in place."""


def ignoring(owner: Any, name: str) -> Break:
    return lambda patch, sampler: patch.setattr(owner, name, nothing)


def neutral(field: str, value: float) -> Break:
    """A parameter that all slots have at its neutral value."""

    def apply(patch: pytest.MonkeyPatch, sampler: Sampler) -> None:
        owner = sampler if hasattr(sampler, field) else sampler._penalties
        patch.setattr(owner, field, torch.full_like(getattr(owner, field), value))

    return apply


def without_paths(patch: pytest.MonkeyPatch, sampler: Sampler) -> None:
    whole = Candidates.paths

    def uncounted(candidates: Candidates) -> Paths:
        paths = whole(candidates)
        return Paths(paths.token_ids, torch.zeros_like(paths.counted))

    patch.setattr(Candidates, "paths", uncounted)


def one_position_for_all_nodes(patch: pytest.MonkeyPatch, sampler: Sampler) -> None:
    expand = verifier.expand_rows

    def still(slots: Sequence[int], firsts: Sequence[int], candidates: Candidates) -> tuple[list[int], list[int]]:
        rows = expand(slots, firsts, candidates)[0]
        return rows, [firsts[0]] * len(rows)

    patch.setattr(verifier, "expand_rows", still)


def accept_first_children(patch: pytest.MonkeyPatch, sampler: Sampler) -> None:
    def lenient(candidates: Candidates, drawn: Tensor, finite: Tensor, caps: Tensor | None) -> Accepted:
        return verify(candidates, torch.cat((candidates.token_ids[:, :1], drawn[:, 1:]), dim=1), finite, caps)

    patch.setattr(verifier, "verify", lenient)


def without_subtracting(patch: pytest.MonkeyPatch, sampler: Sampler) -> None:
    def from_p(candidates: Candidates, p: Tensor, coins: Tensor) -> Any:
        way, _ = reject(candidates, p, coins)
        return way, p[candidates.rows.gather(1, way.length[:, None])[:, 0]]

    patch.setattr(verifier, "reject", from_p)


def with_uniform_probs(patch: pytest.MonkeyPatch, sampler: Sampler) -> None:
    """As if the drafts had been drawn from something else."""

    def other(candidates: Candidates, p: Tensor, coins: Tensor) -> Any:
        assert candidates.draft_probs is not None
        uniform = torch.full_like(candidates.draft_probs, 1 / VOCAB)
        return reject(dataclasses.replace(candidates, draft_probs=uniform), p, coins)

    patch.setattr(verifier, "reject", other)


def one_coin(patch: pytest.MonkeyPatch, sampler: Sampler) -> None:
    coins = Noise.coins
    patch.setattr(Noise, "coins", lambda noise, slots, positions, stream: coins(noise, slots, [0] * len(slots), stream))


EVERY_RULE: dict[str, Break] = {
    "temperature ignored": neutral("_temperature", 1.0),
    "top_k ignored": ignoring(filters, "keep_top_k_"),
    "top_p ignored": ignoring(filters, "keep_top_p_"),
    "min_p ignored": ignoring(filters, "keep_min_p_"),
    "repetition penalty ignored": neutral("_repetition", 1.0),
    "presence penalty ignored": neutral("_presence", 0.0),
    "frequency penalty ignored": neutral("_frequency", 0.0),
    "penalties not along the path": without_paths,
    "logit_bias ignored": ignoring(LogitBias, "apply"),
    "min_new_tokens ignored": ignoring(MinTokens, "apply"),
    "positions do not follow the depth": one_position_for_all_nodes,
}
ONE_RULE: dict[tuple[str, str], Break] = {
    ("exact chain", "accepts what was not drawn"): accept_first_children,
    ("exact tree", "accepts what was not drawn"): accept_first_children,
    ("rejection", "residual not subtracted"): without_subtracting,
    ("rejection", "drafts taken for uniform"): with_uniform_probs,
    ("rejection without q", "residual not subtracted"): without_subtracting,
    ("rejection", "one coin for all positions"): one_coin,
}
ALL = ("exact chain", "exact tree", "rejection")
CONTROLS = {**{(rule, name): broken for rule in ALL for name, broken in EVERY_RULE.items()}, **ONE_RULE}


@pytest.mark.parametrize(("rule", "name"), CONTROLS, ids=[": ".join(control) for control in CONTROLS])
def test_that_test_notices(
    rule: str, name: str, requests: dict[bool, Requests], chi_square: ChiSquare, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft, rejection = RULES[rule]
    CONTROLS[rule, name](monkeypatch, requests[rejection].sampler)
    pairs, _ = generate_pairs(requests[rejection], draft, num_rounds=1)
    assert chi_square(pairs, exact(PARAMS)) < 1e-6
