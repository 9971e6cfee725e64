"""The canned run: what it sends, what it makes of the answers, and that it always ends."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from slipstream.errors import WorkerDied
from slipstream.launch.warm_up import NUM_TOKENS, WarmUp, warm_up
from slipstream.messages.sampling import DraftStats, FinishReason
from slipstream.messages.to_server import TextOutput, TextOutputs, ToServer
from slipstream.messages.to_tokenizer import (
    AbortRequest,
    ChatPrompt,
    FlushCache,
    FlushDone,
    FromServer,
    Generate,
    RequestFailed,
    TextPrompt,
)
from slipstream.server.client import Client

STATS = DraftStats(12, (1, 0, 1, 2))  # 4 steps of 3 drafts; 0 + 2 + 3 + 3 accepted
LENGTH = (1 + 3 + 4 + 4) / 4  # tokens of those steps by hand


class FakeTokenizer:
    """Answers each message with what `answer` makes of it."""

    def __init__(self, answer: Callable[[FromServer], list[ToServer]]) -> None:
        self.client = Client(self)
        self.sent: list[FromServer] = []
        self._answer = answer

    def put(self, message: FromServer) -> None:
        self.sent.append(message)
        for answer in self._answer(message):
            asyncio.get_running_loop().call_soon(self.client.handle, answer)

    def of(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.sent if isinstance(message, kind)]

    def run(self, **options: Any) -> WarmUp:
        async def run() -> WarmUp:
            return await warm_up(self.client, **options)

        return asyncio.run(run())


def text(rid: str, drafts: DraftStats | None, *, last: bool = True) -> TextOutputs:
    finish = FinishReason("length") if last else None
    return TextOutputs([TextOutput(rid, 0, "x", [1], 9, 0, 4, finish, drafts=drafts)])


def well(message: FromServer) -> list[ToServer]:
    match message:
        case Generate(rid=rid):
            return [text(rid, DraftStats(3, (1,)), last=False), text(rid, STATS)]
        case FlushCache(rid=rid):
            return [FlushDone(rid)]
    return []


def test_the_last_output_says_how_long_accepted_runs_are() -> None:
    fake = FakeTokenizer(well)
    found = fake.run()
    assert (found.stats, found.problem) == (STATS, None)
    assert found.acceptance_length == LENGTH


def test_one_short_greedy_chat_and_then_nothing_of_it_is_left() -> None:
    fake = FakeTokenizer(well)
    fake.run()
    (request,) = fake.of(Generate)
    assert isinstance(request.prompt, ChatPrompt) and request.ignore_eos and request.num_choices == 1
    assert (request.sampling.temperature, request.sampling.max_new_tokens) == (0.0, NUM_TOKENS)
    assert request.sampling.max_draft_tokens is None
    assert isinstance(fake.sent[-1], FlushCache) and fake.sent[-1].counters


def test_without_chats_the_question_is_plain_text() -> None:
    def no_chat(message: FromServer) -> list[ToServer]:
        if isinstance(message, Generate) and isinstance(message.prompt, ChatPrompt):
            return [RequestFailed(message.rid, 400, "no chat template")]
        return well(message)

    fake = FakeTokenizer(no_chat)
    assert fake.run().acceptance_length == LENGTH
    assert [type(request.prompt) for request in fake.of(Generate)] == [ChatPrompt, TextPrompt]


def test_a_refusal_is_reported() -> None:
    def no_room(message: FromServer) -> list[ToServer]:
        return [RequestFailed(message.rid, 400, "no room")] if isinstance(message, Generate) else well(message)

    found = FakeTokenizer(no_room).run()
    assert (found.stats, found.problem, found.acceptance_length) == (None, "no room", None)


def test_a_run_without_drafts_has_no_length() -> None:
    def plain(message: FromServer) -> list[ToServer]:
        return [text(message.rid, None)] if isinstance(message, Generate) else well(message)

    found = FakeTokenizer(plain).run()
    assert found == WarmUp(None) and found.acceptance_length is None


def test_a_slow_run_is_cut_off_and_what_has_come_counts() -> None:
    flushes: list[str] = []

    def slow(message: FromServer) -> list[ToServer]:
        match message:
            case Generate(rid=rid):
                return [text(rid, STATS, last=False)]
            case FlushCache(rid=rid):
                flushes.append(rid)
                return [FlushDone(rid, "1 request runs" if len(flushes) < 3 else None)]
        return []

    fake = FakeTokenizer(slow)
    found = fake.run(timeout_s=0.05)
    assert (found.acceptance_length, found.problem) == (LENGTH, None)
    assert len(fake.of(AbortRequest)) == 1 and len(flushes) == 3


def test_silence_is_reported_and_does_not_last() -> None:
    fake = FakeTokenizer(lambda message: [] if isinstance(message, Generate) else well(message))
    found = fake.run(timeout_s=0.05)
    assert found.stats is None and found.problem is not None and "0.05 s" in found.problem
    assert len(fake.of(AbortRequest)) == 1


def test_a_cache_that_stays_busy_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slipstream.launch.warm_up.FLUSH_TIMEOUT_S", 0.1)

    def busy(message: FromServer) -> list[ToServer]:
        return [FlushDone(message.rid, "1 request runs")] if isinstance(message, FlushCache) else well(message)

    found = FakeTokenizer(busy).run()
    assert found.acceptance_length == LENGTH
    assert found.problem is not None and "1 request runs" in found.problem


def test_the_death_of_the_runtime_is_no_verdict() -> None:
    fake = FakeTokenizer(lambda message: [])

    async def run() -> None:
        task = asyncio.create_task(warm_up(fake.client))
        await asyncio.sleep(0.01)
        fake.client.fail_all(WorkerDied("the worker process ended"))
        await task

    with pytest.raises(WorkerDied, match="the worker process ended"):
        asyncio.run(run())
