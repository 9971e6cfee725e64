"""What the server answers is what the model computes, however the work was cut up."""

import random
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import MistralForCausalLM

from slipstream.hf_transformers.embedded import embedded_path
from support.live_server import LiveServer
from support.transformers_reference import likeliest_after, load_native

NUM_TOKENS = 24


@pytest.fixture(scope="module")
def reference() -> MistralForCausalLM:
    return load_native(embedded_path())


def source_prompts(http: httpx.Client, count: int) -> list[list[int]]:
    """Token ids of pieces of real source, 3 to 150 tokens long."""
    text = Path(textwrap.__file__).read_text()
    token_ids = http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    generator = random.Random(1)
    starts = [generator.randrange(1, len(token_ids) - 160) for _ in range(count)]
    return [[1, *token_ids[start : start + generator.randrange(3, 150)]] for start in starts]


def generate(http: httpx.Client, prompt: list[int], **sampling: Any) -> dict[str, Any]:
    params = {"max_new_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True, **sampling}
    answer = http.post("/generate", json={"input_ids": prompt, "sampling_params": params})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def at_once(http: httpx.Client, prompts: list[list[int]], **sampling: Any) -> list[list[int]]:
    """Output ids of all prompts, sixteen in flight."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda prompt: generate(http, prompt, **sampling)["output_ids"], prompts))


def test_greedy_equals_transformers_on_50_prompts(http: httpx.Client, reference: MistralForCausalLM) -> None:
    prompts = source_prompts(http, 50)
    for prompt, answer in zip(prompts, at_once(http, prompts), strict=True):
        assert len(answer) == NUM_TOKENS
        assert answer == likeliest_after(reference, prompt, answer)


def test_sixteen_at_once_equal_one_by_one(http: httpx.Client) -> None:
    prompts = source_prompts(http, 16)
    alone = [generate(http, prompt)["output_ids"] for prompt in prompts]
    http.post("/flush_cache").raise_for_status()
    assert at_once(http, prompts) == alone


def test_a_seeded_request_at_temperature_1_is_the_same_alone_and_in_a_batch(http: httpx.Client) -> None:
    prompts = source_prompts(http, 16)
    sampling = {"temperature": 1.0, "sampling_seed": 7, "top_p": 0.95, "top_k": 40, "min_p": 0.01}
    alone = [generate(http, prompt, **sampling)["output_ids"] for prompt in prompts]
    http.post("/flush_cache").raise_for_status()
    assert at_once(http, prompts, **sampling) == alone
    assert generate(http, prompts[0], **{**sampling, "sampling_seed": 8})["output_ids"] != alone[0]


def test_a_long_prompt_in_chunks_equals_transformers(http: httpx.Client, reference: MistralForCausalLM) -> None:
    prompt = (source_prompts(http, 1)[0] * 20)[:700]  # eleven chunks of 64
    answer = generate(http, prompt)["output_ids"]
    assert answer == likeliest_after(reference, prompt, answer)


def test_chunks_equal_whole(http: httpx.Client) -> None:
    prompts = [(prompt * 20)[:300] for prompt in source_prompts(http, 4)]
    with (
        LiveServer("--dtype", "float32", "--chunked-prefill-size", "2048") as whole,
        httpx.Client(base_url=whole.url, timeout=60) as other,
    ):
        for prompt in prompts:
            assert generate(http, prompt)["output_ids"] == generate(other, prompt)["output_ids"]


def test_a_prefix_hit_equals_cold(http: httpx.Client) -> None:
    prompt = (source_prompts(http, 1)[0] * 20)[:200]
    http.post("/flush_cache").raise_for_status()
    cold, warm = generate(http, prompt), generate(http, prompt)
    assert cold["meta_info"]["cached_tokens"] == 0
    assert warm["meta_info"]["cached_tokens"] == 192
    assert warm["output_ids"] == cold["output_ids"]


def test_prompt_logprobs_equal_transformers(http: httpx.Client, reference: MistralForCausalLM) -> None:
    prompt = (source_prompts(http, 1)[0] * 20)[:200]
    answer = http.post("/generate", json={
        "input_ids": prompt, "sampling_params": {"max_new_tokens": 1, "temperature": 0}, "return_logprob": True,
        "logprob_start_len": 0}).json()  # fmt: skip
    got = answer["meta_info"]["input_token_logprobs"]
    with torch.inference_mode():
        wanted = reference(torch.tensor([prompt])).logits[0].log_softmax(-1)
    assert got[0][0] is None and [entry[1] for entry in got] == prompt
    for position in range(1, len(prompt)):
        assert got[position][0] == pytest.approx(float(wanted[position - 1, prompt[position]]), abs=1e-3)
