"""The same engine on a CUDA device: the CPU path is the reference."""

import httpx
import pytest

from slipstream import Engine
from support.live_server import MODEL, LiveServer

pytestmark = pytest.mark.gpu

GREEDY = {"max_new_tokens": 32, "temperature": 0, "ignore_eos": True}
SEEDED = {"max_new_tokens": 32, "temperature": 1.0, "sampling_seed": 5, "top_p": 0.9, "top_k": 50, "ignore_eos": True}
PROMPTS = ["import os\n", "def main():\n", "class Stack:\n", "for line in sys.stdin:\n", '"""Parse'] * 4


def answers(**options: object) -> list[list[list[int]]]:
    with Engine(dtype="float32", random_seed=1, **options) as engine:
        return [[answer.token_ids for answer in engine.generate(PROMPTS, params)] for params in (GREEDY, SEEDED)]


def test_fp32_gives_the_tokens_of_the_cpu() -> None:
    assert answers(device="cuda") == answers(device="cpu")


def test_bf16_answers_the_question_over_http() -> None:
    with LiveServer("--device", "cuda") as server:
        body = {"model": MODEL, "temperature": 0, "messages": [{"role": "user", "content": "What does os.getcwd do?"}]}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
        assert "current working directory" in answer["choices"][0]["message"]["content"]
        assert httpx.get(f"{server.url}/get_server_info").json()["scheduler"]["worker"]["device"].startswith("cuda")
