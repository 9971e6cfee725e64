"""With drafts and without the same tokens, on a GPU: in fp32 all of them, in bf16 but for what rounding decides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from slipstream.engine import Answer, Engine
from slipstream.sampling.noise import Noise
from support.embedded_prompts import long_question, question, source
from support.gpu_models import gpu_engine, prompt_of, write_gpu_pair

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]  # kernels are compiled the first time

BF16, FP32 = "bfloat16", "float32"
NUM_PROMPTS = 24
NEW_TOKENS = 32
NEAR_TIE = 0.1  # nats
MOST_DIFFERENT = 0.2  # of all answers
SEED = 7
CPU = torch.device("cpu")
WINDOWS: dict[str, Any] = {"sliding_window": [None, 20]}
PAIRS = {"embedded": None, "GQA": {}, "windows": WINDOWS}
GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
SEEDED: dict[str, Any] = GREEDY | {"temperature": 0.8, "sampling_seed": SEED, "top_k": 10}  # of 20 with logprobs
FILTERED: dict[str, Any] = SEEDED | {"top_k": 30, "top_p": 0.9, "min_p": 0.01}

Prompts = list[list[int]]


def of_embedded() -> Prompts:
    """Questions and sources, as the ids that the engine makes of them."""
    texts = [(question(i), source(i, 200), long_question(i))[i % 3] for i in range(NUM_PROMPTS)]
    with gpu_engine(None, "none", device="cpu", attention_backend="torch_native", dtype=FP32) as engine:
        answers = engine.generate(texts, {"max_new_tokens": 1}, prompt_logprobs_from=0)
    return [[token.token_id for token in answer.prompt_logprobs or ()] for answer in answers]


@pytest.fixture(scope="module")
def embedded_prompts() -> Prompts:
    return of_embedded()


def write_pair(name: str, folder: Path) -> tuple[Path | None, Path | str | None]:
    changes = PAIRS[name]
    return (None, None) if changes is None else write_gpu_pair(folder, **changes)


def plain(target: Path | None, **changes: Any) -> Any:
    return gpu_engine(target, "none", **changes)


def num_accepted(answers: Sequence[Answer]) -> int:
    return sum(answer.drafts.num_accepted for answer in answers if answer.drafts is not None)


@pytest.mark.parametrize("name", PAIRS)
def test_fp32_tokens_do_not_change(name: str, embedded_prompts: Prompts, tmp_path: Path) -> None:
    """Greedy, seeded and filtered, each prompt cold and then from the prefix cache."""
    target, draft = write_pair(name, tmp_path)
    prompts = embedded_prompts if target is None else [prompt_of(i, 3 + 11 * i % 120) for i in range(NUM_PROMPTS)]
    with plain(target, dtype=FP32) as engine:
        expected = [[answer.token_ids for answer in engine.generate(prompts, way)] for way in (GREEDY, FILTERED)]
    with gpu_engine(target, draft, dtype=FP32) as engine:
        for way, wanted in ((GREEDY, expected[0]), (FILTERED, expected[1]), (GREEDY, expected[0])):
            answers = engine.generate(prompts, way)
            assert [index for index in range(NUM_PROMPTS) if answers[index].token_ids != wanted[index]] == []
            assert num_accepted(answers) > NUM_PROMPTS, "hardly any draft was accepted: nothing was tested"


def gap(engine: Engine, prompt: list[int], one: list[int], other: list[int], temperature: float) -> float:
    """How far the plain model prefers one of two tokens to the other where two answers part, in nats; what it draws by
    with a temperature is the logprob divided by it, and noise.
    """
    at = next(index for index, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    context = prompt + one[:at]
    top = engine.generate(context, {"temperature": 0, "max_new_tokens": 1}, top_logprobs=20)[0].logprobs
    assert top is not None
    logprobs = {token_id: logprob for token_id, _, logprob in top[0].top}
    if one[at] not in logprobs or other[at] not in logprobs:
        return float("inf")
    difference = logprobs[one[at]] - logprobs[other[at]]
    if temperature:
        noise, values = Noise(1, engine.resolved.server.vocab_size, CPU), torch.zeros(1, engine.spec.vocab_size)
        noise.add(0, SEED, 0)
        noise.apply(values, [0], [len(context)])
        difference += temperature * float(values[0, one[at]] - values[0, other[at]])
    return abs(difference)


@pytest.mark.parametrize("way", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_bf16_tokens_change_at_near_ties_only(way: dict[str, Any], embedded_prompts: Prompts) -> None:
    """Steps with other numbers of rows take other products, which round differently."""
    with gpu_engine(None, None, dtype=BF16) as engine:
        answers = engine.generate(embedded_prompts, way)
    assert num_accepted(answers) > NUM_PROMPTS
    with plain(None, dtype=BF16) as engine:
        expected = engine.generate(embedded_prompts, way)
        gaps = [
            gap(engine, prompt, one.token_ids, other.token_ids, way["temperature"])
            for prompt, one, other in zip(embedded_prompts, expected, answers, strict=True)
            if one.token_ids != other.token_ids
        ]
    print(f"{len(gaps)} of {NUM_PROMPTS} answers differ, at gaps of {sorted(round(each, 3) for each in gaps)} nats")
    assert [each for each in gaps if each > NEAR_TIE] == []
    assert len(gaps) <= MOST_DIFFERENT * NUM_PROMPTS
