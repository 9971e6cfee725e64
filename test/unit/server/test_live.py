"""The app behind a real uvicorn: streams, disconnects, slow readers, the openai client."""

import asyncio
import contextlib
import json
import socket
import time

import httpx
import openai
import pytest

from slipstream.messages.to_server import TextOutput, TextOutputs
from slipstream.messages.to_tokenizer import AbortRequest, Generate

MESSAGES = [{"role": "user", "content": "héllo wörld"}]


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_client_chats(client):
    answer = client.chat.completions.create(model="echo", messages=MESSAGES, seed=1, user="me", n=2)
    assert [choice.message.content for choice in answer.choices] == ["héllo wörld"] * 2
    assert answer.usage.prompt_tokens_details.cached_tokens == 1


def test_openai_client_streams(client):
    stream = client.chat.completions.create(
        model="echo", messages=MESSAGES, stream=True, stream_options={"include_usage": True}, logprobs=True
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "héllo wörld"
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage.completion_tokens == 13


def test_openai_client_completes_and_lists(client):
    answer = client.completions.create(model="echo", prompt=["ab", "c"], logprobs=1, echo=True, max_tokens=1)
    assert [choice.text for choice in answer.choices] == ["aba", "cc"]
    assert [model.id for model in client.models.list()] == ["echo"]
    assert client.models.retrieve("echo").id == "echo"


def test_openai_client_raises_its_own_errors(client):
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="echo", messages=MESSAGES, temperature=9)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.APIError, match="the step failed"):
        list(client.completions.create(model="echo", prompt="BREAK", stream=True))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["HANG", "SLOW " + "x" * 400])
def test_a_client_that_goes_aborts_at_once(live, prompt, stream):
    aborts = len(live.rig.fake.of(AbortRequest))
    body = json.dumps({"text": prompt, "stream": stream, "sampling_params": {"max_new_tokens": 400}}).encode()
    with socket.create_connection(("127.0.0.1", live.port)) as connection:
        connection.sendall(
            b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d"
            b"\r\n\r\n%b" % (len(body), body)
        )
        assert live.until(lambda: live.rig.client.num_requests == 1)
    left = time.monotonic()
    assert live.until(lambda: live.rig.client.num_requests == 0)
    assert time.monotonic() - left < 0.5
    assert live.until(lambda: len(live.rig.fake.of(AbortRequest)) == aborts + 1)


def test_a_client_that_stops_reading_is_aborted(start_live):
    live = start_live()
    live.rig.fake._generate = _flood
    body = json.dumps({"prompt": "flood", "stream": True}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", live.port))
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        assert live.until(lambda: bool(live.rig.fake.of(AbortRequest)), 20)
        assert live.rig.client.num_requests == 0
        assert httpx.get(live.url + "/health").status_code == 200


async def _flood(message: Generate, client) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            client.handle(TextOutputs([TextOutput(message.rid, 0, "x" * 5000, [1], 1, 0, 1)]))
            await asyncio.sleep(0.0005)


def test_silence_sends_headers_and_comments(start_live):
    live = start_live(sse_keepalive_s=0.1)
    with httpx.stream(
        "POST", live.url + "/v1/completions", json={"prompt": "HANG", "stream": True}, timeout=5
    ) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(4)] == [": keep-alive", "", ": keep-alive", ""]
    assert live.until(lambda: live.rig.client.num_requests == 0)


def test_a_runtime_that_dies_ends_streams_with_an_error_event(start_live):
    from slipstream.errors import WorkerDied

    live = start_live()
    with httpx.stream("POST", live.url + "/v1/completions", json={"prompt": "SLOW down", "stream": True}) as answer:
        lines = answer.iter_lines()
        next(lines)
        loop = live.server.servers[0].get_loop()
        loop.call_soon_threadsafe(live.rig.client.fail_all, WorkerDied("the worker died"))
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]" and "the worker died" in json.loads(rest[-2][6:])["error"]["message"]
    assert httpx.post(live.url + "/generate", json={"text": "a"}).status_code == 503


def test_a_body_above_the_limit_gets_its_answer(live):
    answer = httpx.post(live.url + "/generate", json={"text": "x" * 900_000})
    assert answer.status_code == 413 and "--max-request-bytes" in answer.json()["error"]["message"]


def test_many_at_once_all_answer_or_are_refused(live):
    async def run() -> list[int]:
        async with httpx.AsyncClient(base_url=live.url, timeout=20) as http:
            answers = await asyncio.gather(*(http.post("/generate", json={"text": f"SLOW {i}"}) for i in range(40)))
        assert all(a.status_code == 503 or a.json()["text"] == f"SLOW {i}" for i, a in enumerate(answers))
        return [answer.status_code for answer in answers]

    statuses = asyncio.run(run())
    assert statuses.count(200) >= 8 and set(statuses) == {200, 503}
    assert live.rig.client.num_requests == 0
