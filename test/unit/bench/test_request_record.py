"""Times of one request follow from its events, however many tokens each of them brings."""

import json

import pytest

from slipstream.bench.request_record import RequestRecord
from slipstream.bench.stream_events import Progress, StreamFailed, read_chat, read_native


def native(num_tokens: int, finish: str | None = None) -> bytes:
    reason = {"type": finish} if finish else None
    meta = {"id": "r", "prompt_tokens": 7, "completion_tokens": num_tokens, "cached_tokens": 3, "finish_reason": reason}
    return json.dumps({"text": "so far", "output_ids": [1] * num_tokens, "meta_info": meta}).encode()


def chunk(content: str | None, finish: str | None = None, num_tokens: int | None = None) -> bytes:
    choices = [] if content is None else [{"index": 0, "delta": {"content": content}, "finish_reason": finish}]
    counts = {"prompt_tokens": 7, "completion_tokens": num_tokens, "prompt_tokens_details": {"cached_tokens": 3}}
    return json.dumps({"id": "c", "choices": choices, "usage": None if num_tokens is None else counts}).encode()


def test_native_events_with_several_tokens() -> None:
    record = RequestRecord(started_s=10.0)
    for now_s, num_tokens in [(10.5, 3), (11.0, 4), (12.5, 8)]:
        record.note(read_native(native(num_tokens)), now_s)
    record.note(read_native(native(8, "length")), 13.0)  # nothing new but the reason
    record.end(13.25)
    assert record.ok
    assert record.ttft_s == 0.5
    assert record.tpot_s == (12.5 - 10.5) / (8 - 3)
    assert record.e2e_s == 3.25
    assert (record.prompt_len, record.num_cached, record.num_tokens) == (7, 3, 8)


def test_chat_with_running_counts() -> None:
    record = RequestRecord(started_s=0.0)
    record.note(read_chat(chunk("", num_tokens=0)), 0.1)  # the role
    for now_s, num_tokens in [(1.0, 2), (3.0, 6)]:
        record.note(read_chat(chunk("text", num_tokens=num_tokens)), now_s)
    record.note(read_chat(chunk("", "stop", 6)), 3.0)
    record.note(read_chat(chunk(None, num_tokens=6)), 3.5)
    record.end(3.5)
    assert record.ok and record.ttft_s == 1.0 and record.tpot_s == 2.0 / 4


def test_chat_of_a_server_that_counts_only_at_the_end() -> None:
    record = RequestRecord(started_s=0.0)
    for now_s in (1.0, 2.0, 3.0):
        record.note(read_chat(chunk("text")), now_s)
    record.note(read_chat(chunk("", "stop")), 3.0)
    record.note(read_chat(chunk(None, num_tokens=5)), 3.0)
    record.end(3.1)
    assert record.ok and record.ttft_s == 1.0 and record.tpot_s == pytest.approx(2.0 / 4)


def test_one_event_with_everything_gives_no_time_per_token() -> None:
    record = RequestRecord(started_s=0.0)
    record.note(read_native(native(4, "length")), 1.0)
    record.end(1.0)
    assert record.ok and record.ttft_s == 1.0 and record.tpot_s is None


def test_a_stream_without_a_finish_reason_is_a_failure() -> None:
    record = RequestRecord(started_s=0.0)
    record.note(Progress(num_tokens=4), 1.0)
    record.end(2.0)
    assert not record.ok and record.error == "the stream ended early"


def test_an_abort_is_a_failure() -> None:
    record = RequestRecord(started_s=0.0)
    record.note(read_native(native(4, "abort")), 1.0)
    record.end(2.0)
    assert not record.ok and record.error == "aborted by the server"


@pytest.mark.parametrize("read", [read_native, read_chat])
def test_error_events_and_garbage(read: "type[object]") -> None:
    with pytest.raises(StreamFailed, match="the worker died"):
        read(json.dumps({"error": {"message": "the worker died", "code": "runtime_failed"}}).encode())  # type: ignore[call-arg]
    with pytest.raises(StreamFailed, match="cannot be read"):
        read(b"<html>")  # type: ignore[call-arg]
