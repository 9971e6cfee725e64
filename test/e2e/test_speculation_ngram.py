"""Prompt lookup through the Engine: no model, the same answers, and fast where a text repeats itself."""

from collections.abc import Iterator
from typing import Any

import pytest

from slipstream import Engine
from support.embedded_prompts import question, source
from support.one_core import one_core

REPEATING: list[Any] = [
    "".join(
        f"    def get_{name}(self):\n        return self._{name}\n\n" for name in ("width", "height", "depth", "name")
    ),
    "import os\nimport sys\nimport re\nimport os\nimport sys\nimport re\nimport os\n",
    "x = [\n" + "    (1, 2, 3),\n" * 6,
]
OTHERS: list[Any] = [question(2), source(1, 200), source(4, 120)]
GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 32, "ignore_eos": True}
SAMPLED: dict[str, Any] = {
    "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 32, "ignore_eos": True, "sampling_seed": 3, "n": 2,
    "frequency_penalty": 0.1, "repetition_penalty": 1.05,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    with one_core():
        yield


@pytest.fixture(scope="module")
def drafting() -> Iterator[Engine]:
    with Engine(dtype="float32", speculative_algorithm="NGRAM", speculative_adaptive="off") as engine:
        yield engine


@pytest.fixture(scope="module")
def plain() -> Iterator[Engine]:
    with Engine(dtype="float32", speculative_algorithm="none") as engine:
        yield engine


@pytest.mark.parametrize("values", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_answers_are_the_same(drafting: Engine, plain: Engine, values: dict[str, Any]) -> None:
    """With an empty cache, and with what the first time left there."""
    expected = plain.generate(REPEATING + OTHERS, values, top_logprobs=0)
    for _ in range(2):
        found = drafting.generate(REPEATING + OTHERS, values, top_logprobs=0)
        for one, other in zip(found, expected, strict=True):
            assert (one.text, one.token_ids, one.finish_reason) == (other.text, other.token_ids, other.finish_reason)
            assert [t.logprob for t in one.logprobs or ()] == pytest.approx(
                [t.logprob for t in other.logprobs or ()], abs=1e-4
            )
        assert sum(answer.drafts.num_accepted for answer in found if answer.drafts is not None) > 10


def test_a_text_that_repeats_is_answered_in_few_steps(drafting: Engine) -> None:
    for answer in drafting.generate(REPEATING, GREEDY):
        assert answer.drafts is not None
        assert 1 + answer.drafts.num_accepted / answer.drafts.num_verify > 1.5


def test_a_short_window_finds_more_and_a_long_one_less(drafting: Engine) -> None:
    """The bounds of the runs that are looked up reach the worker."""
    usual = [answer.token_ids for answer in drafting.generate(OTHERS[1:], GREEDY)]
    counts = []
    for shortest, longest in ((1, 1), (6, 8)):
        window: dict[str, Any] = {
            "speculative_ngram_min_match_window_size": shortest,
            "speculative_ngram_max_match_window_size": longest,
        }
        with Engine(dtype="float32", speculative_algorithm="NGRAM", speculative_adaptive="off", **window) as engine:
            found = engine.generate(OTHERS[1:], GREEDY)
        assert [answer.token_ids for answer in found] == usual
        counts.append(sum(answer.drafts.num_draft_tokens for answer in found if answer.drafts is not None))
    assert counts[0] > 2 * counts[1]
