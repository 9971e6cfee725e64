"""Messages travel whole, in order, and only as the type that the receiver expects."""

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from slipstream.errors import WorkerDied
from slipstream.messages import queues
from slipstream.messages.codec import Codec
from slipstream.messages.queues import LocalQueue, ZmqInbox, ZmqOutbox
from slipstream.messages.sampling import SamplingParams
from slipstream.messages.to_scheduler import ToScheduler
from slipstream.messages.to_server import ToServer
from slipstream.messages.to_tokenizer import Generate, TextPrompt, TokenPrompt, ToTokenizer
from slipstream.messages.to_worker import NewRequest, Plan, PrefillChunk, ToWorker


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def endpoint() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        yield f"ipc://{Path(directory) / 'inbox'}"


@given(
    rid=st.text(max_size=20), ids=st.lists(st.integers(0, 2**31 - 1)), seed=st.integers(-(2**63), 2**63 - 1),
    bias=st.dictionaries(st.integers(0, 2**31 - 1), st.floats(allow_nan=False)), stop=st.lists(st.text(), max_size=3),
)  # fmt: skip
def test_any_request_survives_the_codec(
    rid: str, ids: list[int], seed: int, bias: dict[int, float], stop: list[str]
) -> None:
    codec: Codec[ToTokenizer] = Codec(ToTokenizer)
    sampling = SamplingParams(max_new_tokens=3, seed=seed, logit_bias=bias)
    request = Generate(rid=rid, prompt=TokenPrompt(ids), sampling=sampling, stop=tuple(stop))
    assert codec.decode(codec.encode(request)) == request


def test_a_plan_survives_the_codec() -> None:
    codec: Codec[ToWorker] = Codec(ToWorker)
    new = NewRequest(1, [1, 2], 2, SamplingParams(max_new_tokens=1, seed=0), [3], 0)
    plan = Plan(step=7, release=[0], new=[new], pages=[(1, [4])], chunks=[PrefillChunk(1, 0, 2, True)], decode=[2])
    assert codec.decode(codec.encode(plan)) == plan


@pytest.mark.parametrize("kind", [ToTokenizer, ToScheduler, ToWorker, ToServer])
def test_a_foreign_frame_is_refused(kind: Any) -> None:
    codec: Codec[Any] = Codec(kind)
    for frame in (b"", b"\x00", b"hello", msgspec.msgpack.encode({"type": "Nobody"})):
        with pytest.raises(msgspec.DecodeError):
            codec.decode(frame)


def test_zmq_keeps_order_and_waits(context: zmq.Context[Any], endpoint: str) -> None:
    outbox: ZmqOutbox[ToTokenizer] = ZmqOutbox(context, endpoint, ToTokenizer)  # connecting first is fine
    sent = [Generate(str(i), TextPrompt("x"), SamplingParams(max_new_tokens=1, seed=i)) for i in range(500)]
    for message in sent:
        outbox.put(message)
    inbox: ZmqInbox[ToTokenizer] = ZmqInbox(context, endpoint, ToTokenizer)
    received: list[ToTokenizer] = []
    while len(received) < len(sent):
        assert inbox.wait(5.0)
        received += inbox.drain()
    assert received == sent
    assert not inbox.wait(0.01)
    outbox.close()
    inbox.close()


def test_a_receiver_that_stopped_reading_is_an_error_not_a_hang(
    context: zmq.Context[Any], endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "MAX_QUEUED_FRAMES", 5)
    outbox: ZmqOutbox[ToTokenizer] = ZmqOutbox(context, endpoint, ToTokenizer)
    with pytest.raises(WorkerDied, match="unread"):
        for i in range(100):
            outbox.put(Generate(str(i), TextPrompt("x"), SamplingParams(max_new_tokens=1, seed=i)))
    outbox.close()


def test_the_local_queue_wakes_a_waiter_in_another_thread() -> None:
    queue: LocalQueue[int] = LocalQueue()
    timer = threading.Timer(0.05, queue.put, (1,))
    timer.start()
    assert queue.wait(5.0)
    assert queue.drain() == [1]
    assert not queue.wait(0.0)
    timer.join()
