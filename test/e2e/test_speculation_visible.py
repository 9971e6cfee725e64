"""A server that speculates by prompt lookup: what requests may say, and that all that is reported agrees."""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from slipstream import Engine
from slipstream.errors import RequestError
from support.live_server import MODEL, LiveServer

PROMPTS = (
    "import os\nimport sys\nimport re\n",
    "class A:\n    def a(self):\n        return self.a\n\n    def b(self):\n        return self.b\n\n    def c(self):",
)
GREEDY = {"max_new_tokens": 80, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def drafting() -> Iterator[httpx.Client]:
    flags = ("--speculative-algorithm", "NGRAM", "--speculative-adaptive", "off", "--dtype", "float32")
    with LiveServer(*flags) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def generate(http: httpx.Client, text: Any, sampling: Any = GREEDY, **fields: Any) -> Any:
    answer = http.post("/generate", json={"text": text, "sampling_params": sampling, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def spec_fields(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer["meta_info"].items() if name.startswith("spec_")}


def counters(http: httpx.Client, is_there: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """What is counted by slipstream, once a status has come with which it `is_there`; vLLM's names say the same."""
    for _ in range(100):
        text = http.get("/metrics").text
        ours, theirs = (
            {
                name: float(value)
                for name, value in re.findall(rf"^{prefix}spec_decode_(\S+) (\S+)$", text, re.MULTILINE)
            }
            for prefix in ("slipstream_", "vllm:")
        )
        assert ours == theirs
        if is_there(ours):
            return ours
        time.sleep(0.05)
    raise AssertionError(f"after 5 s: {ours}")


def test_counters_are_the_sum_of_what_answers_say(drafting: httpx.Client) -> None:
    before = counters(drafting, lambda found: 'num_accepted_tokens_per_pos_total{position="0"}' in found)
    answers = generate(drafting, [*PROMPTS])
    metas = [answer["meta_info"] for answer in answers]
    histogram = [sum(steps) for steps in zip(*(meta["spec_correct_drafts_histogram"] for meta in metas), strict=True)]
    assert sum(histogram[2:]) > 5, "too little was accepted to show anything"
    expected = {
        "num_drafts_total": sum(meta["spec_verify_ct"] for meta in metas),
        "num_draft_tokens_total": sum(meta["spec_num_proposed_drafts"] for meta in metas),
        "num_accepted_tokens_total": sum(meta["spec_num_correct_drafts"] for meta in metas),
    }
    for position in range(5):
        expected[f'num_accepted_tokens_per_pos_total{{position="{position}"}}'] = sum(histogram[position + 1 :])
    counters(drafting, lambda now: {name: now[name] - before[name] for name in now} == expected)
    for meta in metas:
        histogram = meta["spec_correct_drafts_histogram"]
        assert sum(histogram) == meta["spec_verify_ct"]
        assert sum(i * steps for i, steps in enumerate(histogram)) == meta["spec_num_correct_drafts"]
        # every step without drafts, and the prompt's, gives one token more
        assert meta["spec_num_correct_drafts"] + meta["spec_verify_ct"] < meta["completion_tokens"] == 80
        assert meta["spec_accept_length"] == 1 + meta["spec_num_correct_drafts"] / meta["spec_verify_ct"]
        assert meta["spec_accept_rate"] == meta["spec_num_correct_drafts"] / meta["spec_num_proposed_drafts"]


def test_a_request_without_drafts_says_the_same_and_reports_none(drafting: httpx.Client) -> None:
    for prompt in PROMPTS:
        drafted = generate(drafting, prompt)
        for fields in ({"speculative": False}, {"max_draft_tokens": 0}):
            plain = generate(drafting, prompt, **fields)
            assert spec_fields(plain) == {} and plain["output_ids"] == drafted["output_ids"]
        short = generate(drafting, prompt, max_draft_tokens=2)
        assert short["output_ids"] == drafted["output_ids"]
        assert sum(spec_fields(short)["spec_correct_drafts_histogram"][3:]) == 0
        capped = generate(drafting, prompt, GREEDY | {"accept_cap": 1})
        assert capped["output_ids"] == drafted["output_ids"]
        histogram = spec_fields(capped)["spec_correct_drafts_histogram"]
        assert histogram[1] > 0 and sum(histogram[2:]) == 0


def parts(answer: dict[str, Any]) -> tuple[Any, ...]:
    """All that a stop string may change."""
    meta = answer["meta_info"]
    logprobs = meta["output_token_logprobs"]
    assert [token_id for _, token_id, _ in logprobs] == answer["output_ids"]
    assert len(answer["output_ids"]) == meta["completion_tokens"]
    return (
        answer["text"],
        answer["output_ids"],
        meta["finish_reason"],
        [pytest.approx(logprob, abs=1e-3) for logprob, _, _ in logprobs],
    )


@pytest.mark.parametrize("prompt", PROMPTS)
def test_stop_strings_anywhere_in_accepted_runs_end_the_same(drafting: httpx.Client, prompt: str) -> None:
    text = generate(drafting, prompt)["text"]
    stops = [text[start : start + 3] for start in range(20, len(text) - 3, max(1, len(text) // 8))]
    prompts, sampling = [prompt] * len(stops), [GREEDY | {"stop": stop} for stop in stops]
    drafted = generate(drafting, prompts, sampling, return_logprob=True)
    plain = generate(drafting, prompts, sampling, return_logprob=True, speculative=False)
    for stop, with_drafts, without in zip(stops, drafted, plain, strict=True):
        assert parts(with_drafts) == parts(without)
        assert with_drafts["text"] == text[: text.index(stop)]


def test_openai_answers_and_server_info_tell_it(drafting: httpx.Client) -> None:
    with OpenAI(base_url=f"{drafting.base_url}/v1", api_key="none", max_retries=0) as client:
        ask: dict[str, Any] = {"model": MODEL, "prompt": PROMPTS[0], "max_tokens": 100, "temperature": 0}
        answer = client.completions.create(**ask, n=2, extra_body={"ignore_eos": True})
        metrics = (answer.model_extra or {})["metrics"]["speculative_decoding"]
        assert metrics["num_spec_steps"] == sum(metrics["acceptance_histogram"])
        assert metrics["mean_acceptance_length"] == 1 + metrics["num_accepted_draft_tokens"] / metrics["num_spec_steps"]
        off = client.completions.create(**ask, extra_body={"ignore_eos": True, "speculative": False})
        assert off.choices[0].text == answer.choices[0].text and "metrics" not in (off.model_extra or {})
        chunks = list(client.completions.create(**ask, n=2, stream=True, extra_body={"ignore_eos": True}))
        assert (chunks[-1].model_extra or {})["metrics"]["speculative_decoding"]["num_accepted_draft_tokens"] > 0
    info = drafting.get("/get_server_info").json()
    assert info["speculative"]["algorithm"] == "NGRAM" and info["speculative"]["num_steps_now"] == 5
    assert info["internal_states"][0]["avg_spec_accept_length"] == info["speculative"]["avg_accept_length"] > 1


def test_the_engine_takes_and_tells_the_same() -> None:
    with Engine(dtype="float32", speculative_algorithm="NGRAM", speculative_adaptive="off") as engine:
        drafted = engine.generate([*PROMPTS], GREEDY)
        plain = engine.generate([*PROMPTS], GREEDY, speculative=False)
        short = engine.generate([*PROMPTS], GREEDY, max_draft_tokens=2)
        assert [a.token_ids for a in drafted] == [a.token_ids for a in plain] == [a.token_ids for a in short]
        assert [answer.drafts for answer in plain] == [None, None]
        for long, two in zip(drafted, short, strict=True):
            assert long.drafts is not None and two.drafts is not None
            assert sum(long.drafts.accepted[3:]) > 0 == sum(two.drafts.accepted[3:])
        with pytest.raises(RequestError, match="max_draft_tokens"):
            engine.generate("a", speculative=False, max_draft_tokens=1)
    with Engine(speculative_algorithm="none") as engine, pytest.raises(RequestError, match="without speculation"):
        engine.generate("a", speculative=True)
