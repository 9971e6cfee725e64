"""Speculation as clients see it: what a request may say, what answers and metrics tell, against the formulas."""

import json
import re
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from slipstream.messages.queues import LocalQueue
from slipstream.messages.sampling import DraftStats, SamplingParams
from slipstream.messages.to_server import TextOutput, TextOutputs
from slipstream.messages.to_tokenizer import Counters, FromServer, Generate, SchedulerStatus, TextPrompt
from slipstream.server.client import Client

CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "abc"}]},
    COMPLETIONS: {"prompt": "abc"},
    GENERATE: {"text": "abc"},
}
FIRST, SECOND = DraftStats(12, (1, 0, 2, 1)), DraftStats(6, (0, 2))
OF_FIRST = {  # four steps with 2 + 2 + 3 accepted of 12
    "spec_accept_length": 1 + 7 / 4,
    "spec_accept_rate": 7 / 12,
    "spec_verify_ct": 4,
    "spec_num_correct_drafts": 7,
    "spec_num_proposed_drafts": 12,
    "spec_correct_drafts_histogram": [1, 0, 2, 1],
}
OF_BOTH = {  # six steps with 7 + 2 accepted of 18
    "mean_acceptance_length": 1 + 9 / 6,
    "draft_acceptance_rate": 9 / 18,
    "acceptance_histogram": [1, 2, 2, 1],
    "num_spec_steps": 6,
    "num_draft_tokens": 18,
    "num_accepted_draft_tokens": 9,
}
STATUS = SchedulerStatus(
    1, 0, 32, 20, 4, 0.0, Counters(num_drafts=10, num_draft_tokens=30, num_accepted_tokens=16,
                                   num_accepted_per_position=[9, 5, 2]), draft_depth=3,
)  # fmt: skip
NAMES = {
    "num_drafts": 10.0,
    "num_draft_tokens": 30.0,
    "num_accepted_tokens": 16.0,
}


def events(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.split("\n\n") if line and not line.startswith(":")]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, None),
        ({"speculative": None, "max_draft_tokens": None}, None),
        ({"speculative": True}, None),
        ({"speculative": False}, 0),
        ({"max_draft_tokens": 0}, 0),
        ({"max_draft_tokens": 2}, 2),
        ({"speculative": True, "max_draft_tokens": 2}, 2),
        ({"speculative": False, "max_draft_tokens": 0}, 0),
    ],
)
async def test_a_request_limits_its_drafts(
    make_http: Callable[..., Any], path: str, fields: dict[str, Any], limit: int | None
) -> None:
    async with make_http(speculative_algorithm="EAGLE") as (rig, http):
        assert (await http.post(path, json=BODIES[path] | fields)).status_code == 200
        assert rig.fake.seen[0].sampling.max_draft_tokens == limit


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"speculative": False, "max_draft_tokens": 2}, "max_draft_tokens"),
        ({"speculative": True, "max_draft_tokens": 0}, "max_draft_tokens"),
        ({"max_draft_tokens": -1}, "max_draft_tokens"),
        ({"max_draft_tokens": 1.5}, "max_draft_tokens"),
        ({"max_draft_tokens": True}, "max_draft_tokens"),
        ({"speculative": "no"}, "speculative"),
        ({"speculative": 0}, "speculative"),
    ],
)
async def test_contradictions_and_wrong_values_are_refused_by_name(
    make_http: Callable[..., Any], path: str, fields: dict[str, Any], param: str
) -> None:
    async with make_http(speculative_algorithm="EAGLE") as (rig, http):
        response = await http.post(path, json=BODIES[path] | fields)
        assert response.status_code == 400 and response.json()["error"]["param"] == param
        assert rig.fake.seen == []


@pytest.mark.parametrize("path", BODIES)
async def test_a_server_without_speculation_says_so(rig_http: Any, path: str) -> None:
    rig, http = rig_http
    response = await http.post(path, json=BODIES[path] | {"speculative": True})
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == "speculative"
    assert "--speculative-draft-model-path" in error["message"]
    for harmless in ({"speculative": False}, {"max_draft_tokens": 3}, {"speculative": None}):
        assert (await http.post(path, json=BODIES[path] | harmless)).status_code == 200
    assert [sent.sampling.max_draft_tokens for sent in rig.fake.seen] == [0, 3, None]


async def test_acceptance_can_be_capped_for_measuring(rig_http: Any) -> None:
    rig, http = rig_http
    for cap in (0, 2, None):
        body = {"text": "a", "sampling_params": {"accept_cap": cap}}
        assert (await http.post(GENERATE, json=body)).status_code == 200
    assert [sent.sampling.accept_cap for sent in rig.fake.seen] == [0, 2, None]
    response = await http.post(GENERATE, json={"text": "a", "sampling_params": {"accept_cap": -1}})
    assert response.status_code == 400 and response.json()["error"]["param"] == "sampling_params.accept_cap"


async def test_meta_info_tells_what_became_of_the_drafts(rig_http: Any) -> None:
    rig, http = rig_http
    rig.fake.drafts = {0: FIRST}
    answers = (await http.post(GENERATE, json={"text": "abc", "sampling_params": {"n": 2}})).json()
    first, second = ({name: meta[name] for name in meta if name.startswith("spec_")}
                     for meta in (answer["meta_info"] for answer in answers))  # fmt: skip
    assert first == OF_FIRST and second == {}  # nothing was drafted for the second
    values = events((await http.post(GENERATE, json={"text": "abc", "stream": True})).text)
    assert values[-1]["meta_info"].items() >= OF_FIRST.items()


async def test_drafts_of_which_none_was_accepted_are_reported(rig_http: Any) -> None:
    rig, http = rig_http
    rig.fake.drafts = {0: DraftStats(9, (3, 0, 0, 0))}
    meta = (await http.post(GENERATE, json={"text": "abc"})).json()["meta_info"]
    assert (meta["spec_accept_length"], meta["spec_accept_rate"], meta["spec_verify_ct"]) == (1.0, 0.0, 3)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_openai_answers_sum_over_choices(rig_http: Any, path: str) -> None:
    rig, http = rig_http
    assert "metrics" not in (await http.post(path, json=BODIES[path])).json()
    rig.fake.drafts = {0: FIRST, 1: SECOND}
    answer = (await http.post(path, json=BODIES[path] | {"n": 3})).json()
    assert answer["metrics"] == {"speculative_decoding": OF_BOTH}


async def test_openai_answers_sum_over_prompts(rig_http: Any) -> None:
    rig, http = rig_http
    rig.fake.drafts = {0: FIRST}
    metrics = (await http.post(COMPLETIONS, json={"prompt": ["ab", "c"]})).json()["metrics"]["speculative_decoding"]
    assert (metrics["num_spec_steps"], metrics["num_accepted_draft_tokens"]) == (8, 14)
    assert metrics["acceptance_histogram"] == [2, 0, 4, 2] and metrics["mean_acceptance_length"] == 1 + 7 / 4


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("with_usage", [False, True])
async def test_a_stream_tells_it_once_and_last(rig_http: Any, path: str, with_usage: bool) -> None:
    rig, http = rig_http
    rig.fake.drafts = {0: FIRST, 1: SECOND}
    body = BODIES[path] | {"n": 2, "stream": True, "stream_options": {"include_usage": with_usage}}
    *chunks, last = events((await http.post(path, json=body)).text)
    assert last["metrics"] == {"speculative_decoding": OF_BOTH}
    assert not any("metrics" in chunk for chunk in chunks)
    assert bool(last["choices"]) != with_usage  # no chunk of a kind that clients do not know


def test_the_openai_client_reads_it(start_live: Callable[..., Any]) -> None:
    live = start_live(speculative_algorithm="EAGLE")
    live.rig.fake.drafts = {0: FIRST, 1: SECOND}
    with openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as client:
        ask: dict[str, Any] = {"model": "echo", "messages": BODIES[CHAT]["messages"], "n": 2}
        answer = client.chat.completions.create(**ask, extra_body={"max_draft_tokens": 2})
        assert answer.model_extra == {"metrics": {"speculative_decoding": OF_BOTH}}
        asks: list[dict[str, Any]] = [ask, ask | {"stream_options": {"include_usage": True}}]
        for fields in asks:
            chunks = list(client.chat.completions.create(**fields, stream=True))
            assert chunks[-1].model_extra == {"metrics": {"speculative_decoding": OF_BOTH}}
            texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
            assert sorted("".join(texts)) == sorted("abcabc")
        with pytest.raises(openai.BadRequestError, match="max_draft_tokens"):
            client.completions.create(
                model="echo", prompt="a", extra_body={"speculative": False, "max_draft_tokens": 2}
            )
    assert live.rig.fake.seen[0].sampling.max_draft_tokens == 2


async def test_an_aborted_answer_keeps_what_is_known() -> None:
    queue: LocalQueue[FromServer] = LocalQueue()
    client = Client(queue)
    generation = client.generate(Generate("x", TextPrompt("a"), SamplingParams(8, 0), 2))
    (sent,) = queue.drain()
    assert isinstance(sent, Generate)
    client.handle(TextOutputs([TextOutput(sent.rid, 0, "ab", [97, 98], 3, 1, 2, drafts=FIRST)]))
    client.abort("x")
    ends = [(output.choice, output.num_generated, output.drafts) async for output in generation if output.finish]
    assert ends == [(0, 2, FIRST), (1, 0, None)]


async def scrape(http: httpx.AsyncClient) -> dict[tuple[str, str], float]:
    """(name, position or "") -> value of everything about speculation, read as Prometheus reads it."""
    return {
        (sample.name, sample.labels.get("position", "")): sample.value
        for family in text_string_to_metric_families((await http.get("/metrics")).text)
        for sample in family.samples
        if re.search("spec_|vllm", sample.name)
    }


async def test_counters_go_under_both_names(make_http: Callable[..., Any]) -> None:
    async with make_http(speculative_algorithm="EAGLE") as (rig, http):
        before = await scrape(http)
        assert {value for value in before.values()} == {0.0} and ("vllm:spec_decode_num_drafts_total", "") in before
        rig.state.handle(STATUS, time.monotonic())
        expected = {("slipstream_spec_num_steps", ""): 3.0}
        for prefix in ("slipstream_", "vllm:"):
            expected |= {(f"{prefix}spec_decode_{name}_total", ""): value for name, value in NAMES.items()}
            name = f"{prefix}spec_decode_num_accepted_tokens_per_pos_total"
            expected |= {(name, "0"): 9.0, (name, "1"): 5.0, (name, "2"): 2.0}
        assert await scrape(http) == expected
        assert "# TYPE vllm:spec_decode_num_drafts_total counter" in (await http.get("/metrics")).text


async def test_without_speculation_there_is_nothing_to_count(rig_http: Any) -> None:
    _, http = rig_http
    assert await scrape(http) == {}
    info = (await http.get("/get_server_info")).json()
    assert info["speculative"] is None and "avg_spec_accept_length" not in info["internal_states"][0]


async def test_server_info_tells_depth_and_average(make_http: Callable[..., Any]) -> None:
    async with make_http(speculative_algorithm="EAGLE") as (rig, http):
        info = (await http.get("/get_server_info")).json()
        assert info["speculative"]["avg_accept_length"] is None
        assert "avg_spec_accept_length" not in info["internal_states"][0]
        assert "nothing drafted yet" in (await http.get("/")).text
        rig.state.handle(STATUS, time.monotonic())
        info = (await http.get("/get_server_info")).json()
        assert info["speculative"] == {
            "algorithm": "EAGLE",
            "num_steps_now": 3,
            "avg_accept_length": 1 + 16 / 10,
            "num_drafts": 10,
            "num_draft_tokens": 30,
            "num_accepted_tokens": 16,
            "num_accepted_per_position": [9, 5, 2],
        }
        assert info["internal_states"][0]["avg_spec_accept_length"] == 2.6
        assert "EAGLE, K = 3 now, acceptance length 2.60 so far" in (await http.get("/")).text
