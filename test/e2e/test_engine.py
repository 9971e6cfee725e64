"""The offline Engine in both forms."""

import asyncio
from collections.abc import Iterator

import pytest

from slipstream import Engine
from slipstream.errors import CheckpointError, ConfigError, RequestError, WorkerDied

GREEDY = {"max_new_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(dtype="float32", random_seed=1) as engine:
        yield engine


def test_one_prompt_and_many(engine: Engine) -> None:
    prompts = ["import os\n", "def main():", "class A:"]
    many = engine.generate(prompts, GREEDY)
    assert [answer.prompt_index for answer in many] == [0, 1, 2]
    assert [engine.generate(prompt, GREEDY)[0].text for prompt in prompts] == [answer.text for answer in many]
    assert all(len(answer.token_ids) == 12 and answer.finish_reason == "length" for answer in many)


def test_text_ids_and_chats_are_prompts(engine: Engine) -> None:
    question = [{"role": "user", "content": "What does textwrap.dedent do?"}]
    chat = engine.generate(question, {"max_new_tokens": 60, "temperature": 0})[0]
    assert "Remove any common leading whitespace" in chat.text
    assert engine.generate([question, question], GREEDY)[1].text == engine.generate(question, GREEDY)[0].text
    assert engine.generate([1, 500, 600], GREEDY)[0].prompt_len == 3


def test_choices_follow_their_prompt(engine: Engine) -> None:
    answers = engine.generate(["a", "b"], {"max_new_tokens": 4, "n": 2, "sampling_seed": 3})
    assert [(answer.prompt_index, answer.choice) for answer in answers] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_logprobs_of_answer_and_prompt(engine: Engine) -> None:
    answer = engine.generate([1, 500, 600, 700], GREEDY, top_logprobs=2, prompt_logprobs_from=0)[0]
    assert answer.logprobs is not None and len(answer.logprobs) == 12
    assert answer.prompt_logprobs is not None
    assert [token.token_id for token in answer.prompt_logprobs] == [1, 500, 600, 700]
    assert answer.prompt_logprobs[0].logprob is None


def test_a_stream_says_the_same(engine: Engine) -> None:
    async def collect() -> str:
        return "".join([output.text async for output in engine.stream("import os\n", GREEDY)])

    assert asyncio.run(collect()) == engine.generate("import os\n", GREEDY)[0].text


def test_leaving_a_stream_aborts_the_request(engine: Engine) -> None:
    async def first() -> str:
        stream = engine.stream("import os\n", {"max_new_tokens": 1000, "ignore_eos": True})
        try:
            return (await anext(stream)).text
        finally:
            await stream.aclose()

    asyncio.run(first())
    for _ in range(100):
        try:
            engine.flush_cache()  # refused as long as anything runs
            return
        except RequestError:
            asyncio.run(asyncio.sleep(0.05))
    raise AssertionError("the request still runs")


def test_a_progress_bar_over_many_prompts(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.generate(["a"] * 40, {"max_new_tokens": 1, "temperature": 0}, progress=True)
    assert "generating" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("prompt", "sampling", "words"),
    [
        ("a", {"max_tokens": 3}, "max_tokens"),
        ("a", {"temperature": -1}, "temperature"),
        ([1, 99999], {}, "99999"),
        ([{"role": "king", "content": "x"}], {}, "king"),
        ("word " * 3000, {}, "--context-length"),
    ],
)
def test_a_wrong_request_raises_and_names_it(
    engine: Engine, prompt: object, sampling: dict[str, object], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        engine.generate(prompt, sampling)  # type: ignore[arg-type]


def test_wrong_logprob_arguments_raise(engine: Engine) -> None:
    with pytest.raises(RequestError, match="top_logprobs is -1"):
        engine.generate("a", GREEDY, top_logprobs=-1)
    with pytest.raises(RequestError, match="prompt_logprobs_from is -1"):
        engine.generate("a", GREEDY, prompt_logprobs_from=-1)
    with pytest.raises(RequestError, match="min_new_tokens"):
        engine.generate("a", {"min_new_tokens": 9, "max_new_tokens": 3})


def test_wrong_options_raise_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="contextlength"):
        Engine(contextlength=3)
    with pytest.raises(CheckpointError, match="/nowhere"):
        Engine("/nowhere")
    with pytest.raises(ConfigError, match="port is an option of the HTTP server"):
        Engine(port=8000)


def test_a_start_that_fails_raises_its_reason() -> None:
    with pytest.raises(WorkerDied, match="--device"):
        Engine(device="cuda")


def test_a_closed_engine_says_so() -> None:
    engine = Engine(dtype="float32")
    engine.close()
    engine.close()
    with pytest.raises(WorkerDied, match="closed"):
        engine.generate("a", GREEDY)


def test_processes_answer_what_one_process_answers(engine: Engine) -> None:
    prompts = ["import os\n", "def main():"]
    with Engine(dtype="float32", random_seed=1, in_process=False) as other:
        assert [a.token_ids for a in other.generate(prompts, GREEDY)] == [
            a.token_ids for a in engine.generate(prompts, GREEDY)
        ]
