"""One timed request against a server that answers as told."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from slipstream.bench.connection import base_url, error_text
from slipstream.bench.http_client import LoadClient
from slipstream.bench.request_record import RequestRecord
from slipstream.errors import ConfigError
from slipstream.messages.sampling import DraftStats
from support.scripted_server import Asked, Reply, scripted_server, sse

GAP_S = 0.05


def native(num_tokens: int, finish: str | None = None) -> dict[str, Any]:
    meta = {"completion_tokens": num_tokens, "prompt_tokens": 3, "cached_tokens": 0}
    return {"text": "", "output_ids": [], "meta_info": {**meta, "finish_reason": {"type": finish} if finish else None}}


def timed(url: str, use: Callable[[LoadClient, RequestRecord], Any]) -> RequestRecord:
    async def run() -> RequestRecord:
        async with LoadClient(url, "key") as client:
            record = RequestRecord(time.perf_counter())
            await use(client, record)
            return record

    return asyncio.run(run())


def generate(url: str) -> RequestRecord:
    return timed(url, lambda client, record: client.generate([1, 2, 3], 6, record))


def test_a_streamed_answer_is_timed() -> None:
    def pieces() -> Iterator[bytes]:
        for event in sse(native(2), native(4), native(6, "length")):
            time.sleep(GAP_S)
            yield event

    with scripted_server(lambda _: Reply(pieces=pieces)) as server:
        record = generate(server.url)
    assert record.ok and record.num_tokens == 6 and record.prompt_len == 3
    assert record.ttft_s is not None and record.tpot_s is not None and record.e2e_s is not None
    assert record.ttft_s >= GAP_S and record.tpot_s >= 0.9 * 2 * GAP_S / 4 and record.e2e_s >= 4 * GAP_S
    [asked] = server.asked
    assert asked.path == "/generate" and asked.headers["authorization"] == "Bearer key"
    assert asked.body["input_ids"] == [1, 2, 3] and asked.body["stream"] is True
    assert asked.body["sampling_params"] == {"max_new_tokens": 6, "temperature": 0, "ignore_eos": True}


def test_verify_steps_are_read_on_both_routes() -> None:
    meta = native(6, "length")["meta_info"] | {
        "spec_accept_length": 2.5, "spec_num_proposed_drafts": 5, "spec_correct_drafts_histogram": [0, 1, 1]
    }  # fmt: skip
    drafts = {"mean_acceptance_length": 2.5, "num_draft_tokens": 5, "acceptance_histogram": [0, 1, 1]}
    usage = {"prompt_tokens": 3, "completion_tokens": 6}
    chat = [
        {"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}], "usage": usage},
        {"choices": [], "usage": usage, "metrics": {"speculative_decoding": drafts}},
    ]
    replies = {"/generate": sse({"meta_info": meta}), "/v1/chat/completions": sse(*chat)}
    with scripted_server(lambda asked: Reply(pieces=lambda: iter(replies[asked.path]))) as server:
        records = [generate(server.url), timed(server.url, lambda client, record: client.ask("Why?", 6, record))]
    for record in records:
        assert record.ok and record.drafts == DraftStats(5, (0, 1, 1)) and record.acceptance_length == 2.5


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(503, {"error": {"message": "the queue is full"}}), "HTTP 503: the queue is full"),
        (Reply(pieces=lambda: iter(sse(native(2)))), "the stream ended early"),
        (Reply(pieces=lambda: iter(sse(native(2), {"error": {"message": "boom"}}))), "error event: boom"),
        (Reply(pieces=lambda: iter([b"data: nonsense\n\n"])), "error event: an event that cannot be read"),
    ],
)
def test_what_goes_wrong_is_in_the_record(reply: Reply, error: str) -> None:
    with scripted_server(lambda _: reply) as server:
        record = generate(server.url)
    assert not record.ok and record.error is not None and record.error.startswith(error)
    assert record.ended_s is not None


def test_no_server() -> None:
    with scripted_server(lambda _: Reply()) as server:
        url = server.url
    record = generate(url)  # it is closed now
    assert record.error is not None and record.error.startswith("ConnectError")
    with pytest.raises(ConfigError, match="no server answers"):
        timed(url, lambda client, _: client.model_name())


def test_a_wrong_key_is_named() -> None:
    with scripted_server(lambda _: Reply(401, {})) as server, pytest.raises(ConfigError, match="--api-key"):
        timed(server.url, lambda client, _: client.model_name())


def test_ordinary_ids_leave_out_what_every_text_begins_with() -> None:
    def script(asked: Asked) -> Reply:
        return Reply(body={"tokens": [1, 40, 41, 40] if asked.body["prompt"] else [1]})

    async def run(url: str) -> list[int]:
        async with LoadClient(url, None) as client:
            return await client.ordinary_token_ids()

    with scripted_server(script) as server:
        assert asyncio.run(run(server.url)) == [40, 41]


@pytest.mark.parametrize("text", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_base_url(text: str) -> None:
    assert base_url(text) == "http://h:1"


@pytest.mark.parametrize("text", ["h:1", "127.0.0.1:30000", "ftp://h", "http://", ""])
def test_wrong_base_url(text: str) -> None:
    with pytest.raises(ConfigError, match="--base-url"):
        base_url(text)


def test_error_text() -> None:
    assert error_text(b'{"error": {"message": "m"}}') == "m"
    assert error_text(b"<html>Bad gateway</html>") == "<html>Bad gateway</html>"
    assert error_text(b"[]") == "[]" and error_text(b"") == "no message"
