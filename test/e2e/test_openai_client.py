"""What an OpenAI client sees: chats, completions, streams, logprobs, errors."""

import re

import openai as openai_package
import pytest
from openai import OpenAI

from support.live_server import MODEL

QUESTION = [{"role": "user", "content": "What does textwrap.dedent do?"}]


def test_a_question_gets_the_documented_answer(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert "Remove any common leading whitespace from every line" in (choice.message.content or "")
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_the_same_as_the_whole_answer(openai: OpenAI) -> None:
    whole = openai.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    chunks = list(
        openai.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    finishes = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert finishes[-1] == "stop" and set(finishes[:-1]) == {None}
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage


def test_several_choices_differ_and_repeat_with_their_seed(openai: OpenAI) -> None:
    def ask() -> list[str]:
        answer = openai.completions.create(model=MODEL, prompt="def ", n=4, seed=11, temperature=1.5, max_tokens=12)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        return [choice.text for choice in answer.choices]

    first = ask()
    assert len(set(first)) > 1
    assert ask() == first


def test_logprobs_belong_to_the_text(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, logprobs=True, top_logprobs=3, max_tokens=8
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None and choice.logprobs.content is not None
    entries = choice.logprobs.content
    assert answer.usage is not None and len(entries) == answer.usage.completion_tokens
    assert b"".join(bytes(entry.bytes or ()) for entry in entries).decode() == choice.message.content
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs), "greedy takes the likeliest"


def test_a_stop_string_cuts_text_tokens_and_usage_alike(openai: OpenAI) -> None:
    whole = openai.completions.create(model=MODEL, prompt="import os\n", temperature=0, max_tokens=40)
    text = whole.choices[0].text
    stop = text[len(text) // 2 :][:3]
    cut = openai.completions.create(
        model=MODEL, prompt="import os\n", temperature=0, max_tokens=40, stop=[stop], logprobs=0
    )
    choice = cut.choices[0]
    assert choice.text == text[: text.index(stop)]
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None and choice.logprobs.tokens is not None and cut.usage is not None
    assert len(choice.logprobs.tokens) == cut.usage.completion_tokens
    assert cut.usage.completion_tokens < whole.usage.completion_tokens  # type: ignore[union-attr]


def test_echo_and_prompt_logprobs_as_evaluation_tools_ask_for_them(openai: OpenAI) -> None:
    answer = openai.completions.create(
        model=MODEL, prompt="import os\nimport sys\n", temperature=0, max_tokens=1, echo=True, logprobs=1
    )
    choice = answer.choices[0]
    assert choice.text.startswith("import os\nimport sys\n")
    assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value is not None and value <= 0 for value in choice.logprobs.token_logprobs[1:])
    assert answer.usage is not None
    assert len(choice.logprobs.token_logprobs) == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_bias_and_bans_act(openai: OpenAI) -> None:
    def tokens(**extra: object) -> list[str]:
        answer = openai.completions.create(
            model=MODEL, prompt="import ", temperature=0, max_tokens=6, logprobs=0, extra_body=extra
        )
        assert answer.choices[0].logprobs is not None
        return list(answer.choices[0].logprobs.tokens or [])

    token_id = 1000
    forced = tokens(logit_bias={str(token_id): 100})
    assert len(set(forced)) == 1 and len(forced) == 6
    assert len(set(tokens(logit_bias={str(token_id): 100}, frequency_penalty=2.0, presence_penalty=2.0))) >= 1
    assert tokens(min_tokens=6, logit_bias={"2": 100})[:1] != ["</s>"]


def test_the_model_list_and_unknown_models(openai: OpenAI) -> None:
    assert [model.id for model in openai.models.list()] == [MODEL]
    with pytest.raises(openai_package.NotFoundError, match="gpt-4"):
        openai.chat.completions.create(model="gpt-4", messages=QUESTION)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": 9}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"extra_body": {"temprature": 1}}, "temprature.*temperature"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": "word " * 4000}]}, r"\d+ tokens.*2048.*--context-length"),
    ],
)
def test_a_wrong_request_is_a_400_that_names_it(openai: OpenAI, change: dict[str, object], words: str) -> None:
    with pytest.raises(openai_package.BadRequestError) as error:
        openai.chat.completions.create(**{"model": MODEL, "messages": QUESTION, **change})  # type: ignore[call-overload]
    assert re.search(words, str(error.value)), str(error.value)


def test_nulls_and_values_that_mean_nothing_pass(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=3,
        temperature=None,
        top_p=None,
        stop=None,
        seed=None,
        tools=[],
        tool_choice="none",
        user="me",
        metadata={},
        store=False,
        response_format={"type": "text"},
        parallel_tool_calls=True,
        service_tier="auto",
        extra_body={"lora_path": None, "return_logprob": False},
    )
    assert answer.usage is not None and answer.usage.completion_tokens == 3
