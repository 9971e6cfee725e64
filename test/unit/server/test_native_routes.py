"""The native routes, in process."""

import itertools
import json

import pytest


def events(text):
    lines = [line for line in text.split("\n\n") if line and not line.startswith(":")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


async def test_generate_answers_in_sglangs_form(rig_http):
    rig, http = rig_http
    body = {"text": "abc", "sampling_params": {"max_new_tokens": 2, "temperature": 0, "sampling_seed": 4}, "rid": "r1"}
    answer = (await http.post("/generate", json=body)).json()
    assert answer["text"] == "ab" and answer["output_ids"] == [97, 98]
    meta = answer["meta_info"]
    assert meta.pop("e2e_latency") >= 0
    assert meta == {
        "id": "r1",
        "finish_reason": {"type": "length", "length": 2},
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "cached_tokens": 1,
    }
    sampling = rig.fake.seen[0].sampling
    assert (sampling.seed, sampling.temperature, sampling.max_new_tokens) == (4, 0, 2)


async def test_default_is_128_tokens(rig_http):
    _rig, http = rig_http
    answer = (await http.post("/generate", json={"text": "x" * 200})).json()
    assert answer["meta_info"]["completion_tokens"] == 128


async def test_stop_reason_names_what_matched(rig_http):
    _, http = rig_http
    answer = (await http.post("/generate", json={"input_ids": [97]})).json()
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": 256}


async def test_batches_and_choices_are_lists(rig_http):
    _rig, http = rig_http
    body = {
        "text": ["ab", "c"],
        "rid": ["x", "y"],
        "sampling_params": [{"max_new_tokens": 1}, {"max_new_tokens": 0, "n": 2}],
    }
    answers = (await http.post("/generate", json=body)).json()
    assert [answer["text"] for answer in answers] == ["a", "", ""]
    assert [answer["meta_info"]["id"] for answer in answers] == ["x", "y", "y"]
    assert answers[2]["meta_info"]["finish_reason"] == {"type": "length", "length": 0}
    answers = (await http.post("/generate", json={"input_ids": [[97], [98]], "rid": "z"})).json()
    assert [answer["meta_info"]["id"] for answer in answers] == ["z_0", "z_1"]
    assert isinstance((await http.post("/generate", json={"text": ["a"]})).json(), list)


async def test_streams_are_cumulative(rig_http):
    _, http = rig_http
    values = events((await http.post("/generate", json={"text": "abc", "stream": True})).text)
    assert values[-1]["text"] == "abc" and values[-1]["output_ids"] == [97, 98, 99]
    for before, after in itertools.pairwise(values):
        assert after["text"].startswith(before["text"]) and before["meta_info"]["finish_reason"] is None
    values = events((await http.post("/generate", json={"text": ["ab", "c"], "stream": True})).text)
    assert {value["index"]: value["text"] for value in values} == {0: "ab", 1: "c"}


async def test_logprobs_in_lists(rig_http):
    _, http = rig_http
    body = {
        "text": "abc",
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": 1,
        "sampling_params": {"max_new_tokens": 1},
        "return_text_in_logprobs": True,
    }
    meta = (await http.post("/generate", json=body)).json()["meta_info"]
    assert meta["input_token_logprobs"] == [[None, 97, "a"], [-2.0, 98, "b"], [-3.0, 99, "c"]]
    assert meta["output_token_logprobs"] == [[-1.0, 97, "a"]]
    assert meta["input_top_logprobs"] == [None, [[-1.0, 97, "a"]], [[-1.0, 97, "a"]]]
    assert meta["output_top_logprobs"] == [[[-1.0, 97, "a"]]]
    meta = (await http.post("/generate", json={"text": "a", "return_logprob": True})).json()["meta_info"]
    assert meta["input_token_logprobs"] == [] and meta["output_token_logprobs"] == [[-1.0, 97, None]]
    assert "output_top_logprobs" not in meta


@pytest.mark.parametrize(
    "body,param",
    [
        ({}, "text"),
        ({"text": "a", "input_ids": [1]}, "text"),
        ({"text": 3}, "text"),
        ({"text": ["a", 3]}, "text.1"),
        ({"input_ids": "a"}, "input_ids"),
        ({"input_ids": [300]}, "input_ids.0"),
        ({"input_ids": [[1], 2]}, "input_ids.1"),
        ({"text": "a", "sampling_params": {"temperature": -1}}, "sampling_params.temperature"),
        ({"text": "a", "sampling_params": {"temprature": 1}}, "sampling_params.temprature"),
        ({"text": "a", "sampling_params": {"json_schema": "{}"}}, "sampling_params.json_schema"),
        (
            {"text": "a", "sampling_params": {"min_new_tokens": 9, "max_new_tokens": 3}},
            "sampling_params.min_new_tokens",
        ),
        ({"text": "a", "sampling_params": [{}]}, "sampling_params"),
        ({"text": ["a", "b"], "sampling_params": [{}]}, "sampling_params"),
        ({"text": ["a", "b"], "sampling_params": [{}, {"n": 0}]}, "sampling_params.1.n"),
        ({"text": "a", "rid": "has space"}, "rid"),
        ({"text": "a", "rid": ""}, "rid"),
        ({"text": "a", "rid": 5}, "rid"),
        ({"text": ["a", "b"], "rid": ["x", "x"]}, "rid"),
        ({"text": "a", "image_data": ["x"]}, "image_data"),
        ({"text": "a", "logprob_start_len": -2}, "logprob_start_len"),
        ({"text": "a", "top_logprobs_num": 21}, "top_logprobs_num"),
        ({"text": "a", "top_logprobs_num": 2}, "top_logprobs_num"),
        ({"text": "a", "logprob_start_len": 0}, "logprob_start_len"),
        ({"text": "a", "return_text_in_logprobs": True}, "return_text_in_logprobs"),
    ],
)
async def test_wrong_generate_is_400(rig_http, body, param):
    rig, http = rig_http
    response = await http.post("/generate", json=body)
    assert response.status_code == 400 and response.json()["error"]["param"] == param
    assert rig.fake.seen == [] and rig.client.num_requests == 0


async def test_tokenize_and_detokenize(rig_http):
    _, http = rig_http
    answer = (await http.post("/tokenize", json={"prompt": "hé"})).json()
    assert answer == {"tokens": [104, 195, 169], "count": 3, "max_model_len": 512}
    chat = await http.post("/tokenize", json={"messages": [{"role": "user", "content": "a"}]})
    assert chat.json()["tokens"] == [97]
    assert (await http.post("/detokenize", json={"tokens": [104, 195, 169]})).json() == {"text": "hé"}
    for path, body in (
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": []}),
        ("/detokenize", {"tokens": [257]}),
        ("/detokenize", {"tokens": ["a"]}),
        ("/detokenize", {}),
    ):
        assert (await http.post(path, json=body)).status_code == 400


async def test_flush_needs_an_idle_server(rig_http):
    rig, http = rig_http
    assert (await http.post("/flush_cache")).status_code == 200
    rig.fake.busy = True
    response = await http.post("/flush_cache")
    assert response.status_code == 400 and "requests run" in response.json()["error"]["message"]


async def test_health_generate_sends_one_token_through(rig_http):
    rig, http = rig_http
    assert (await http.get("/health_generate")).status_code == 200
    assert rig.fake.seen[0].sampling.max_new_tokens == 1


async def test_info_masks_secrets(make_http):
    async with make_http(api_key="sesame") as (_, http):
        http.headers["authorization"] = "Bearer sesame"
        for path in ("/get_server_info", "/server_info", "/get_model_info", "/model_info", "/"):
            response = await http.get(path)
            assert response.status_code == 200 and "sesame" not in response.text, path
        info = (await http.get("/server_info")).json()
        assert info["api_key"] == "***" and info["model_path"] == "/models/echo" and info["startup_time"] == 1.5
        assert info["status"]["num_generated_tokens"] == 99 == info["internal_states"][0]["num_generated_tokens"]
        assert (await http.get("/model_info")).json()["is_generation"] is True


async def test_status_page_escapes(make_http):
    async with make_http(served_model_name="<script>") as (_, http):
        page = (await http.get("/")).text
        assert "<script>" not in page and "&lt;script&gt;" in page and "curl http://test/v1/chat/completions" in page


async def test_metrics_count(rig_http):
    _, http = rig_http
    await http.post("/generate", json={"text": "abc"})
    await http.post("/generate", json={"text": "a", "nope": 1})
    page = (await http.get("/metrics")).text
    for line in (
        'slipstream_requests_total{outcome="stop"} 1.0',
        'slipstream_rejected_total{reason="status_400"} 1.0',
        "slipstream_time_to_first_token_seconds_count 1.0",
        "slipstream_inter_token_seconds_count 2.0",
        "slipstream_running_requests 1.0",
        "slipstream_waiting_requests 2.0",
        "slipstream_ready 1.0",
        "slipstream_generated_tokens_total 99.0",
        "slipstream_kv_page_use_ratio 0.25",
        "slipstream_startup_seconds 1.5",
        "slipstream_in_flight_requests 0.0",
    ):
        assert line + "\n" in page, line
