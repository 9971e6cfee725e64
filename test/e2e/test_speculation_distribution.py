"""Speculation is lossless in distribution, through the whole Engine: the first tokens of many seeded choices against
their exact joint distribution from transformers' logits, with controls that fail where a feature is dropped.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from slipstream import Engine
from slipstream.engine import Answer
from slipstream.messages.sampling import SamplingParams
from slipstream.sampling import filters, rejection, verifier
from slipstream.sampling.candidates import Candidates
from slipstream.sampling.sampler import Sampler
from slipstream.sampling.verify import Way
from support.exact_joint import Tokens, chi_square_p, joint_distribution
from support.one_core import one_core
from support.tiny_pair import TinyPair, write_tiny_pair

LENGTH = 3  # tokens of the joint distribution: the first is the prompt's, the others are verified
CHOICES = 128  # of one request, the most that are allowed
PROMPT = [85, 104, 163, 184, 97]
MANY, SOME, FEW = 20_480, 1_920, 1_024
BIAS = {"70": 7.0, "71": 7.5, "72": 6.5, "73": 6.0}
SAMPLINGS: dict[str, dict[str, Any]] = {
    "min_p": {"min_p": 0.2, "logit_bias": BIAS},
    "penalties": {"logit_bias": BIAS, "top_k": 5, "frequency_penalty": 0.9, "presence_penalty": 0.7},
    "flat": {"temperature": 1.5, "top_k": 4, "min_p": 0.02, "frequency_penalty": 0.6, "repetition_penalty": 1.2},
    "all": {
        "temperature": 1.2,
        "top_k": 6,
        "top_p": 0.95,
        "min_p": 0.03,
        "logit_bias": BIAS,
        "frequency_penalty": 0.6,
        "presence_penalty": 0.4,
        "repetition_penalty": 1.2,
    },
}
SHAPES: dict[str, dict[str, Any]] = {
    "chain": {},
    "tree": {"speculative_eagle_topk": 3, "speculative_num_draft_tokens": 9},
    "rejection": {"speculative_use_rejection_sampling": True},
}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    with one_core():
        yield


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return write_tiny_pair(tmp_path_factory.mktemp("pair"), noise=0.07)


def drawn(pair: TinyPair, shape: str, sampling: str, count: int) -> list[Tokens]:
    """The first tokens of `count` choices under different keys; a good part of them was accepted drafts."""
    values = SAMPLINGS[sampling] | {"n": CHOICES, "max_new_tokens": LENGTH + 1, "ignore_eos": True}
    values = values | {"temperature": values.get("temperature", 1.0)}
    options: dict[str, Any] = {"speculative_draft_model_path": pair.draft, "speculative_num_steps": 3}
    options |= {"speculative_adaptive": "off", "dtype": "float32", "max_running_requests": CHOICES, "random_seed": 11}
    with Engine(pair.target, **options, **SHAPES[shape]) as engine:
        answers = engine.generate([PROMPT] * (count // CHOICES), values)
    assert len(answers) == count
    assert num_accepted(answers) > 0.25 * count, "hardly any draft was accepted: nothing was tested"
    return [tuple(answer.token_ids[:LENGTH]) for answer in answers]


def num_accepted(answers: Sequence[Answer]) -> int:
    return sum(answer.drafts.num_accepted for answer in answers if answer.drafts is not None)


def exact(pair: TinyPair, sampling: str) -> dict[Tokens, float]:
    values = dict(SAMPLINGS[sampling])
    values["logit_bias"] = {int(token): bias for token, bias in values.get("logit_bias", {}).items()}
    params = SamplingParams(max_new_tokens=LENGTH, seed=0, **values)
    return joint_distribution(params, pair.logits_after, PROMPT, LENGTH)


@pytest.mark.parametrize(
    ("shape", "sampling", "count"),
    [
        ("chain", "all", MANY),
        ("tree", "all", SOME),
        ("tree", "min_p", SOME),
        ("rejection", "flat", SOME),
        ("rejection", "penalties", SOME),
    ],
)
def test_first_tokens_have_their_exact_joint_distribution(
    pair: TinyPair, shape: str, sampling: str, count: int
) -> None:
    expected = exact(pair, sampling)
    assert 20 < len(expected) < 300
    p = chi_square_p(drawn(pair, shape, sampling, count), expected)
    assert p > 0.001


def ignore_min_p(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(filters, "keep_min_p_", lambda logits, min_p: None)


def ignore_paths(patch: pytest.MonkeyPatch) -> None:
    """Penalties count what was committed before the step, but no draft on the way to a node."""
    patch.setattr(Sampler, "uses_paths", lambda sampler, slots: False)


def keep_residual_whole(patch: pytest.MonkeyPatch) -> None:
    """After a rejected draft the next token is drawn from p, not from what p has beyond q."""

    def reject(candidates: Candidates, target_probs: torch.Tensor, coins: torch.Tensor) -> tuple[Way, torch.Tensor]:
        way, _ = rejection.reject(candidates, target_probs, coins)
        return way, target_probs[candidates.rows.gather(1, way.length[:, None])[:, 0]]

    patch.setattr(verifier, "reject", reject)


@pytest.mark.parametrize(
    ("shape", "sampling", "drop"),
    [
        ("chain", "min_p", ignore_min_p),
        ("chain", "penalties", ignore_paths),
        ("tree", "penalties", ignore_paths),
        ("rejection", "penalties", ignore_paths),
        ("rejection", "flat", keep_residual_whole),
    ],
)
def test_a_feature_that_is_dropped_is_found(
    pair: TinyPair,
    shape: str,
    sampling: str,
    drop: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drop(monkeypatch)
    p = chi_square_p(drawn(pair, shape, sampling, FEW), exact(pair, sampling))
    assert p < 1e-6
