"""The native routes: /generate in SGLang's form, tokenize, info, cache, metrics, probes."""

import itertools
import json
import re
import time

import httpx
import pytest

from support.live_server import MODEL

PROMPT = "import os\nimport sys\n"


def generate(http: httpx.Client, **fields: object) -> httpx.Response:
    sampling = {"max_new_tokens": 8, "temperature": 0}
    return http.post("/generate", json={"text": PROMPT, "sampling_params": sampling, **fields})


def test_the_answer_has_text_ids_and_meta_info(http: httpx.Client) -> None:
    answer = generate(http, rid="my-own-id").json()
    assert answer["text"] and len(answer["output_ids"]) == 8
    meta = answer["meta_info"]
    assert meta["id"] == "my-own-id"
    assert meta["finish_reason"] == {"type": "length", "length": 8}
    assert meta["completion_tokens"] == 8 and meta["prompt_tokens"] > 3
    assert meta["e2e_latency"] > 0


def test_ids_and_text_are_the_same_prompt(http: httpx.Client) -> None:
    token_ids = http.post("/tokenize", json={"prompt": PROMPT}).json()["tokens"]
    by_ids = http.post(
        "/generate", json={"input_ids": token_ids, "sampling_params": {"max_new_tokens": 8, "temperature": 0}}
    )
    assert by_ids.json()["output_ids"] == generate(http).json()["output_ids"]


def test_a_batch_answers_in_order(http: httpx.Client) -> None:
    prompts = [PROMPT, "def main():", "class A:"]
    batch = http.post(
        "/generate", json={"text": prompts, "sampling_params": {"max_new_tokens": 8, "temperature": 0}}
    ).json()
    assert [answer["text"] for answer in batch] == [generate(http, text=prompt).json()["text"] for prompt in prompts]


def test_the_stream_is_cumulative(http: httpx.Client) -> None:
    body = {"text": PROMPT, "stream": True, "sampling_params": {"max_new_tokens": 8, "temperature": 0}}
    with http.stream("POST", "/generate", json=body) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    texts = [event["text"] for event in events]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert texts[-1] == generate(http).json()["text"]
    assert events[-1]["meta_info"]["completion_tokens"] == 8


def test_output_logprobs_come_on_request(http: httpx.Client) -> None:
    meta = generate(http, return_logprob=True, top_logprobs_num=2).json()["meta_info"]
    assert len(meta["output_token_logprobs"]) == 8
    for (logprob, token_id, _), tops in zip(meta["output_token_logprobs"], meta["output_top_logprobs"], strict=True):
        assert tops[0][:2] == [logprob, token_id], "greedy takes the likeliest"


def test_tokenize_and_detokenize_are_inverse(http: httpx.Client) -> None:
    text = "def größe(x): return '→' + x  # 你好"
    tokens = http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": tokens}).json()["text"] == text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text": None}, "text"),
        ({"input_ids": [1]}, "both"),
        ({"sampling_params": {"max_tokens": 3}}, "max_tokens"),
        ({"sampling_params": {"temperature": -1}}, "temperature"),
        ({"sampling_params": {"stop_token_ids": [99999]}}, "99999"),
        ({"image_data": "x"}, "image_data"),
        ({"lora_path": "x"}, "lora_path"),
        ({"text": "word " * 4000}, r"tokens.*--context-length"),
        ({"text": None, "input_ids": [123456]}, "123456"),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(http: httpx.Client, fields: dict[str, object], words: str) -> None:
    answer = generate(http, **fields)
    assert answer.status_code == 400
    assert re.search(words, answer.json()["error"]["message"]), answer.text


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'{"text": "\xff"}', b'{"text": "a", "text2": 1}', b"\x00" * 100]
)
def test_a_body_that_is_no_request_is_a_400(http: httpx.Client, data: bytes) -> None:
    answer = http.post("/generate", content=data, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_a_body_beyond_the_limit_is_refused_by_size(http: httpx.Client) -> None:
    answer = http.post("/generate", json={"text": "x" * (17 * 2**20)})
    assert answer.status_code == 413
    assert "--max-request-bytes" in answer.json()["error"]["message"]


def test_probes_and_info(http: httpx.Client) -> None:
    for path in ("/health", "/ready", "/health_generate", "/", "/v1//models", "/v1/models/"):
        assert http.get(path).status_code == 200, path
    assert http.get("/get_model_info").json()["served_model_name"] == MODEL
    info = http.get("/get_server_info").json()
    assert info["page_size"] == 16 and info["version"]
    assert http.get("/nowhere").status_code == 404
    assert http.get("/generate").status_code == 405


def test_health_answers_fast(http: httpx.Client) -> None:
    times = [http.get("/health").elapsed.total_seconds() for _ in range(20)]
    assert sorted(times)[10] < 0.05


def test_metrics_count_what_was_generated(http: httpx.Client) -> None:
    def total(name: str) -> float:
        found = re.search(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", http.get("/metrics").text, re.MULTILINE)
        assert found, name
        return float(found.group(1))

    before = total("slipstream_generated_tokens_total")
    generate(http)
    time.sleep(1.2)  # the next heartbeat carries the counters
    assert total("slipstream_generated_tokens_total") - before == 8


def test_request_ids_are_echoed_or_made(http: httpx.Client) -> None:
    assert http.get("/v1/models", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert http.get("/v1/models").headers["x-request-id"]
