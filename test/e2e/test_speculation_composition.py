"""Speculation with everything else that a request may ask for, on the embedded pair: what comes out is what the engine
without a draft gives, in text, ids, logprobs, finish and usage.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from slipstream import Engine
from slipstream.engine import Answer
from slipstream.errors import RequestError
from slipstream.messages.to_server import TextOutput, TokenText
from slipstream.scheduler.scheduler import Scheduler
from slipstream.scheduler.sequence import Sequence as RunningSequence
from slipstream.server.schemas.speculation import Speculation
from support.embedded_prompts import question, source
from support.one_core import one_core

DEPTH = 3
PROMPTS: list[Any] = [question(0), question(1), source(0, 300), source(3, 200)]
PLAIN: dict[str, Any] = {"temperature": 0, "max_new_tokens": 24}
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 24, "sampling_seed": 5}
SHAPES: dict[str, dict[str, Any]] = {"chain": {}, "tree": {"speculative_eagle_topk": 3}}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    with one_core():
        yield


@pytest.fixture(scope="module", params=SHAPES)
def drafting(request: pytest.FixtureRequest) -> Iterator[Engine]:
    shape = {"speculative_num_steps": DEPTH} | SHAPES[request.param]
    with Engine(dtype="float32", random_seed=1, speculative_adaptive="off", **shape) as engine:
        yield engine


@pytest.fixture(scope="module")
def plain() -> Iterator[Engine]:
    with Engine(dtype="float32", random_seed=1, speculative_algorithm="none") as engine:
        yield engine


def assert_same(drafted: Sequence[Answer], expected: Sequence[Answer], *, accepts: bool = True) -> None:
    """All that a client sees. With `accepts` some of it was drafted."""
    assert len(drafted) == len(expected)
    for found, wanted in zip(drafted, expected, strict=True):
        for field in ("text", "token_ids", "finish_reason", "prompt_len", "prompt_index", "choice"):
            assert getattr(found, field) == getattr(wanted, field), field
        assert_same_logprobs(found.logprobs, wanted.logprobs)
        assert_same_logprobs(found.prompt_logprobs, wanted.prompt_logprobs)
        assert wanted.drafts is None
    if accepts:
        assert sum(answer.drafts.num_accepted for answer in drafted if answer.drafts) > 0, "nothing was tested"


def assert_same_logprobs(found: Sequence[TokenText] | None, expected: Sequence[TokenText] | None) -> None:
    assert (found is None) == (expected is None)
    for one, other in zip(found or (), expected or (), strict=True):
        assert (one.token_id, one.data) == (other.token_id, other.data)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [logprob for *_, logprob in one.top] == pytest.approx([p for *_, p in other.top], abs=1e-4)
        if all(abs(a[2] - b[2]) > 1e-3 for a, b in zip(other.top, other.top[1:], strict=False)):  # no near ties
            assert [token_id for token_id, *_ in one.top] == [token_id for token_id, *_ in other.top]


def compare(drafting: Engine, plain: Engine, prompts: Any, values: dict[str, Any], **wanted: Any) -> list[Answer]:
    answers = drafting.generate(prompts, values, **wanted)
    assert_same(answers, plain.generate(prompts, values, **wanted), accepts=values["max_new_tokens"] > 8)
    return answers


async def outputs_of(engine: Engine, prompt: Any, values: dict[str, Any]) -> list[TextOutput]:
    return [output async for output in engine.stream(prompt, values)]


def run_offsets(engine: Engine, prompt: Any, values: dict[str, Any]) -> list[int]:
    """For each token of the answer its place in the run that one step committed: 0 is the step's first token."""
    runs = [len(output.token_ids) for output in asyncio.run(outputs_of(engine, prompt, values))]
    return [offset for count in runs for offset in range(count)]


def each(engine: Engine, prompt: Any, values: Sequence[dict[str, Any]]) -> list[Answer]:
    """One answer with logprobs for each of `values`, all asked at once."""
    with ThreadPoolExecutor(len(values)) as pool:
        return list(pool.map(lambda each: engine.generate(prompt, each, top_logprobs=0)[0], values))


@pytest.mark.parametrize("prompt", PROMPTS[1:3], ids=["question", "source"])
def test_stop_ids_at_every_place_of_a_run(drafting: Engine, plain: Engine, prompt: Any) -> None:
    (answer,) = plain.generate(prompt, PLAIN)
    offsets = run_offsets(drafting, prompt, PLAIN)
    assert len(offsets) == len(answer.token_ids)
    places = [at for at, token_id in enumerate(answer.token_ids) if answer.token_ids.index(token_id) == at]
    assert {offsets[at] for at in places} == {*range(DEPTH + 1)}
    stops = [PLAIN | {"stop_token_ids": [answer.token_ids[at]]} for at in places]
    found = each(drafting, prompt, stops)
    assert_same(found, each(plain, prompt, stops))
    for at, stopped in zip(places, found, strict=True):
        assert stopped.token_ids == answer.token_ids[: at + 1] and stopped.finish_reason == "stop"
        assert stopped.logprobs is not None and len(stopped.logprobs) == at + 1
        assert stopped.drafts is None or stopped.drafts.num_accepted <= at


@pytest.mark.parametrize("prompt", PROMPTS[1:3], ids=["question", "source"])
def test_stop_strings_at_every_place_of_a_run(drafting: Engine, plain: Engine, prompt: Any) -> None:
    (answer,) = plain.generate(prompt, PLAIN)
    text = answer.text
    starts = [start for start in range(0, len(text) - 2, 2) if text.index(text[start : start + 3]) == start]
    stops = [PLAIN | {"stop": [text[start : start + 3]]} for start in starts]
    found = each(drafting, prompt, stops)
    assert_same(found, each(plain, prompt, stops))
    for start, stopped in zip(starts, found, strict=True):
        assert stopped.text == text[:start] and stopped.finish_reason == "stop"
        assert stopped.token_ids == answer.token_ids[: len(stopped.token_ids)]
        assert stopped.logprobs is not None and len(stopped.logprobs) == len(stopped.token_ids)


@pytest.mark.parametrize("count", range(1, 8))
def test_a_limit_in_mid_run(drafting: Engine, plain: Engine, count: int) -> None:
    for answer in compare(drafting, plain, PROMPTS, PLAIN | {"max_new_tokens": count, "ignore_eos": True}):
        assert len(answer.token_ids) == count and answer.finish_reason == "length"


def test_choices_with_seeds(drafting: Engine, plain: Engine) -> None:
    answers = compare(drafting, plain, PROMPTS, SAMPLED | {"n": 3}, top_logprobs=2)
    assert len(answers) == 3 * len(PROMPTS)
    assert len({tuple(answer.token_ids) for answer in answers if answer.prompt_index == 2}) == 3


@pytest.mark.parametrize("values", [PLAIN, SAMPLED], ids=["greedy", "sampled"])
def test_logprobs_are_the_targets(drafting: Engine, plain: Engine, values: dict[str, Any]) -> None:
    features = {"repetition_penalty": 1.1, "frequency_penalty": 0.2, "logit_bias": {"300": 1.0}}
    compare(drafting, plain, PROMPTS, values, top_logprobs=5, prompt_logprobs_from=0)
    compare(drafting, plain, PROMPTS, values | features, top_logprobs=5, prompt_logprobs_from=3)


def test_ends_that_are_forbidden_or_ignored(drafting: Engine, plain: Engine) -> None:
    short = min(
        plain.generate([question(i) for i in range(6)], PLAIN | {"max_new_tokens": 64}), key=lambda a: len(a.token_ids)
    )
    length, prompt = len(short.token_ids), question(short.prompt_index)
    assert short.finish_reason == "stop" and length < 60
    longer = PLAIN | {"max_new_tokens": length + 12}
    values = [longer | {"min_new_tokens": least} for least in (length - 2, length - 1, length, length + 6)]
    values.append(longer | {"ignore_eos": True})
    found = each(drafting, prompt, values)
    assert_same(found, each(plain, prompt, values))
    assert [len(answer.token_ids) > length for answer in found] == [False, False, True, True, True]
    assert len(found[-1].token_ids) == length + 12


def test_streams_say_the_same_in_pieces(drafting: Engine, plain: Engine) -> None:
    for prompt in PROMPTS:
        (answer,) = plain.generate(prompt, PLAIN)
        outputs = asyncio.run(outputs_of(drafting, prompt, PLAIN))
        assert "".join(output.text for output in outputs) == answer.text
        assert [token_id for output in outputs for token_id in output.token_ids] == answer.token_ids
        assert outputs[-1].finish is not None and outputs[-1].finish.type == answer.finish_reason
        assert outputs[-1].num_generated == len(answer.token_ids)
        assert len(outputs) < len(answer.token_ids), "every run was one token"


def test_abort_at_any_moment_disturbs_nobody(drafting: Engine, plain: Engine) -> None:
    expected = plain.generate(PROMPTS, PLAIN)

    async def leave_after(count: int) -> None:
        stream = drafting.stream(PROMPTS[count % 4], PLAIN | {"max_new_tokens": 200, "ignore_eos": True})
        async with contextlib.aclosing(stream):  # type: ignore[type-var]
            for _ in range(count):
                await anext(stream)

    async def stay(prompt: Any) -> str:
        return "".join(output.text for output in await outputs_of(drafting, prompt, PLAIN))

    async def both() -> list[str]:
        leaving = asyncio.gather(*map(leave_after, range(6)))
        texts = await asyncio.gather(*map(stay, PROMPTS))
        await leaving
        return texts

    assert asyncio.run(both()) == [answer.text for answer in expected]
    wait_until_idle(drafting)


def wait_until_idle(engine: Engine) -> None:
    for _ in range(200):
        try:
            engine.flush_cache()  # refused as long as anything runs
            return
        except RequestError:
            asyncio.run(asyncio.sleep(0.05))
    raise AssertionError("something still runs")


@pytest.mark.parametrize("shape", SHAPES)
def test_preempted_requests_go_on_as_if_nothing_had_been(
    plain: Engine, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the echo of the prompt, which comes once."""
    preempted: list[str] = []
    preempt = Scheduler._preempt

    def counting(scheduler: Scheduler, sequence: RunningSequence) -> None:
        preempted.append(sequence.rid)
        preempt(scheduler, sequence)

    monkeypatch.setattr(Scheduler, "_preempt", counting)
    prompts = [source(i, 60) for i in range(6)]
    values = PLAIN | {"max_new_tokens": 40, "ignore_eos": True}
    small: dict[str, Any] = {"max_total_tokens": 192, "page_size": 4, "max_running_requests": 6}
    shaped: dict[str, Any] = {"speculative_num_steps": DEPTH, "speculative_adaptive": "off"} | SHAPES[shape]
    with Engine(dtype="float32", **small, **shaped) as engine:
        answers = asyncio.run(echoed(engine, prompts, values))
    assert len(preempted) > 2, "nobody was preempted"
    for prompt, outputs, expected in zip(prompts, answers, plain.generate(prompts, values), strict=True):
        assert "".join(output.text for output in outputs) == expected.text
        assert [token_id for output in outputs for token_id in output.token_ids] == expected.token_ids
        assert [output.prompt_text for output in outputs if output.prompt_text is not None] == [prompt]
        assert outputs[-1].drafts is not None and outputs[-1].drafts.num_accepted > 0


async def echoed(engine: Engine, prompts: Sequence[str], values: dict[str, Any]) -> list[list[TextOutput]]:
    """The outputs of requests that ask for an echo, which only the HTTP server's clients can."""

    async def ask(prompt: str) -> list[TextOutput]:
        request = engine._request(prompt, values, Speculation(), None, None)
        async with engine._client.generate(msgspec.structs.replace(request, echo=True)) as generation:
            return [output async for output in generation]

    async def ask_all() -> list[list[TextOutput]]:
        return list(await asyncio.gather(*map(ask, prompts)))

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(ask_all(), engine._loop))
