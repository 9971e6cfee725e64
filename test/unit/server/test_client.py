"""The client: streams, ends, aborts, failures, slow readers."""

import asyncio
import gc

import msgspec
import pytest

from slipstream.errors import Overloaded, RequestError, WorkerDied
from slipstream.messages.queues import LocalQueue
from slipstream.messages.sampling import FinishReason, SamplingParams
from slipstream.messages.to_server import Detokenized, ProcessFailed, Stage, TextOutput, TextOutputs, Tokenized
from slipstream.messages.to_tokenizer import AbortRequest, FlushDone, Generate, RequestFailed, TextPrompt
from slipstream.server import client as client_module
from slipstream.server.client import Client

SAMPLING = SamplingParams(max_new_tokens=8, seed=0)


def request(rid="r", num_choices=1):
    return Generate(rid, TextPrompt("x"), SAMPLING, num_choices)


def output(rid="r", choice=0, text="a", finish=None, number=1):
    return TextOutput(rid, choice, text, [97] * len(text), 3, 1, number, FinishReason(finish) if finish else None)


class Watcher:
    def __init__(self):
        self.first, self.more, self.ends = [], [], []

    def first_output(self, waited_s):
        self.first.append(waited_s)

    def tokens(self, count, elapsed_s):
        self.more.append((count, elapsed_s))

    def ended(self, outcome, elapsed_s):
        self.ends.append((outcome, elapsed_s))


class SentQueue(LocalQueue):
    """Remembers the rid of the message by which each request was sent last."""

    def __init__(self):
        super().__init__()
        self.sent_rid = {}

    def put(self, message):
        if isinstance(message, Generate):
            self.sent_rid[caller_rid(message)] = message.rid
        super().put(message)


class AddressedClient(Client):
    """A Client to which tests speak of requests by the callers' rids."""

    def handle(self, message):
        sent_rid = self._to_tokenizer.sent_rid
        if isinstance(message, TextOutputs):
            message = TextOutputs([readdressed(output, sent_rid) for output in message.outputs])
        super().handle(readdressed(message, sent_rid) if isinstance(message, RequestFailed) else message)


def readdressed(message, sent_rid):
    return msgspec.structs.replace(message, rid=sent_rid.get(message.rid, message.rid))


def caller_rid(message):
    return message.rid.partition(":")[2]


@pytest.fixture
def queue():
    return SentQueue()


@pytest.fixture
def client(queue):
    return AddressedClient(queue)


def aborts(queue):
    return [caller_rid(message) for message in queue.drain() if isinstance(message, AbortRequest)]


@pytest.mark.parametrize("ending", ["abort", "close", "stop"])
async def test_a_rid_used_again_gets_nothing_of_the_old_request(queue, ending):
    client = Client(queue)
    old = client.generate(request())
    old_rid = queue.drain()[0].rid
    if ending == "stop":
        client.handle(TextOutputs([output(old_rid, finish="stop")]))
    else:
        old.close() if ending == "close" else client.abort("r")
    generation = client.generate(request())
    client.handle(TextOutputs([output(old_rid, text="late"), output(old_rid, finish="abort")]))
    client.handle(RequestFailed(old_rid, 500, "late"))
    client.handle(TextOutputs([output(queue.sent_rid["r"], text="new", finish="stop")]))
    assert [(item.rid, item.text) async for item in generation] == [("r", "new")]


async def test_outputs_of_all_choices_until_every_one_has_finished(client, queue):
    generation = client.generate(request(num_choices=2))
    assert client.num_requests == 1 and client.num_choices == 2
    client.handle(TextOutputs([output(choice=1, finish="stop"), output(choice=0)]))
    client.handle(TextOutputs([output(choice=1, text="late")]))  # after its end: dropped
    client.handle(TextOutputs([output(choice=0, finish="length"), output(rid="nobody")]))
    outputs = [(item.choice, item.text) async for item in generation]
    assert outputs == [(1, "a"), (0, "a"), (0, "a")]
    assert generation.done and client.num_requests == client.num_choices == 0
    generation.close()
    assert aborts(queue) == []


async def test_a_waiting_consumer_wakes_up(client):
    generation = client.generate(request())
    waiting = asyncio.create_task(anext(generation))
    await asyncio.sleep(0)
    client.handle(TextOutputs([output(finish="stop")]))
    assert (await waiting).text == "a"
    with pytest.raises(StopAsyncIteration):
        await anext(generation)


async def test_take_times_out_without_ending_anything(client, queue):
    generation = client.generate(request())
    assert await generation.take(0.01) == []
    client.handle(TextOutputs([output(), output(finish="stop")]))
    assert len(await generation.take(0.01)) == 2 and generation.done
    assert await generation.take(0.01) == [] and aborts(queue) == []


async def test_many_waits_share_one_timer_and_each_has_its_whole_timeout(client, queue):
    loop = asyncio.get_running_loop()
    generation = client.generate(request())
    timers = set()
    for number in range(3):
        taking = asyncio.create_task(generation.take(0.05))
        await asyncio.sleep(0.01)
        timers.add(generation._stream._timer)
        client.handle(TextOutputs([output(number=number)]))
        assert len(await taking) == 1
    assert len(timers) == 1
    started = loop.time()
    assert await generation.take(0.05) == [] and loop.time() - started >= 0.045
    assert await generation.take(0.05) == [], "the timer works again after it has fired"
    assert aborts(queue) == []


async def test_a_wait_without_timeout_is_not_woken_by_the_timer_of_one_before(client):
    generation = client.generate(request())
    taking = asyncio.create_task(generation.take(0.02))
    await asyncio.sleep(0)
    client.handle(TextOutputs([output()]))
    assert len(await taking) == 1
    taking = asyncio.create_task(generation.take())
    await asyncio.sleep(0.04)
    assert not taking.done()
    client.handle(TextOutputs([output(finish="stop")]))
    assert len(await taking) == 1
    assert generation._stream._timer is None, "nothing is left behind"


async def test_a_shorter_timeout_than_the_one_before_is_kept(client):
    generation = client.generate(request())
    taking = asyncio.create_task(generation.take(30))
    await asyncio.sleep(0)
    client.handle(TextOutputs([output()]))
    assert len(await taking) == 1
    assert await asyncio.wait_for(generation.take(0.01), 1) == []


async def leave_by_close(generation):
    await anext(generation)
    await generation.aclose()
    await generation.aclose()


async def leave_by_context(generation):
    async with generation:
        await anext(generation)


async def leave_by_cancellation(generation):
    await anext(generation)
    task = asyncio.create_task(anext(generation))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def leave_by_forgetting(generation):
    async for _ in generation:
        break
    del generation
    gc.collect()


@pytest.mark.parametrize("leave", [leave_by_close, leave_by_context, leave_by_cancellation, leave_by_forgetting])
async def test_leaving_early_aborts_exactly_once(client, queue, leave):
    generations = [client.generate(request())]
    client.handle(TextOutputs([output()]))
    await leave(generations.pop())
    gc.collect()
    assert aborts(queue) == ["r"] and client.num_requests == 0
    client.handle(TextOutputs([output()]))  # late: dropped
    client.handle(RequestFailed("r", 500, "late"))
    client.generate(request()).close()  # the id is free again


async def test_refusals_become_errors(client, queue):
    generation = client.generate(request())
    client.handle(RequestFailed("r", 400, "too long", "prompt", "context_length_exceeded"))
    with pytest.raises(RequestError, match="too long") as caught:
        await anext(generation)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "prompt", "context_length_exceeded")
    generation = client.generate(request())
    client.handle(TextOutputs([output()]))
    client.handle(RequestFailed("r", 503, "queue full"))
    assert (await anext(generation)).text == "a"  # what had come is not lost
    with pytest.raises(Overloaded):
        await anext(generation)
    assert aborts(queue) == []


async def test_requests_sent_together_fail_together(client, queue):
    generation = client.generate(request("a"), request("b"), request("c"), name="all")
    client.handle(TextOutputs([output("a", finish="stop")]))
    client.handle(RequestFailed("b", 400, "no"))
    assert (await anext(generation)).rid == "a"
    with pytest.raises(RequestError):
        await anext(generation)
    assert aborts(queue) == ["c"] and client.num_requests == 0


async def test_ids_in_use_are_refused_and_nothing_is_sent(client, queue):
    first = client.generate(request("a"), request("b"), name="all")
    queue.drain()
    for requests, name in (
        ([request("a")], None),
        ([request("all")], None),
        ([request("x"), request("x")], "y"),
        ([request("x"), request("b")], "y"),
        ([request("x")], "b"),
    ):
        with pytest.raises(RequestError, match="in use"):
            client.generate(*requests, name=name)
    assert queue.drain() == [] and client.num_requests == 2
    first.close()
    assert client.num_requests == 0


async def test_abort_by_id_ends_the_stream_with_a_reason(client, queue):
    generation = client.generate(request("a"), request("b", 2), name="all")
    client.handle(TextOutputs([output("b", 1, number=1)]))
    assert not client.abort("al") and client.abort("b") and not client.abort("b")
    assert client.abort("all")
    outputs = [
        (item.rid, item.choice, item.finish.type if item.finish else None, item.prompt_len) async for item in generation
    ]
    assert outputs == [("b", 1, None, 3), ("b", 0, "abort", 0), ("b", 1, "abort", 3), ("a", 0, "abort", 0)]
    assert aborts(queue) == ["b", "a"]


async def test_a_dead_runtime_fails_everything_now_and_later(client):
    generation = client.generate(request())
    call = asyncio.create_task(client.tokenize(TextPrompt("x")))
    await asyncio.sleep(0)
    client.handle(ProcessFailed("worker", "out of memory"))
    client.fail_all(WorkerDied("again"))
    with pytest.raises(WorkerDied, match="worker process failed: out of memory"):
        await anext(generation)
    with pytest.raises(WorkerDied, match="out of memory"):
        await call
    for again in (client.generate, client.tokenize):
        with pytest.raises(WorkerDied, match="out of memory"):
            await again(request())
    assert client.num_requests == 0


async def test_calls_get_their_own_answers(client, queue):
    calls = [
        asyncio.create_task(client.tokenize(TextPrompt("x"))),
        asyncio.create_task(client.detokenize([1])),
        asyncio.create_task(client.flush_cache()),
        asyncio.create_task(client.flush_cache()),
    ]
    await asyncio.sleep(0)
    rids = [message.rid for message in queue.drain()]
    client.handle(FlushDone(rids[3], "requests run"))
    client.handle(Detokenized(rids[1], "a"))
    client.handle(FlushDone(rids[2]))
    client.handle(Tokenized(rids[0], [1]))
    client.handle(Tokenized("nobody", [1]))
    client.handle(Stage("worker", "loading"))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert results[:3] == [[1], "a", None]
    assert isinstance(results[3], RequestError) and "requests run" in str(results[3])


async def test_calls_are_bounded_in_number_and_time(client, monkeypatch):
    monkeypatch.setattr(client_module, "MAX_CALLS", 1)
    monkeypatch.setattr(client_module, "CALL_TIMEOUT_S", 0.02)
    call = asyncio.create_task(client.tokenize(TextPrompt("x")))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await client.tokenize(TextPrompt("x"))
    with pytest.raises(WorkerDied, match="tokenizer"):
        await call


async def test_nobody_tokenizes_for_a_caller_that_has_gone(client, queue):
    call = asyncio.create_task(client.tokenize(TextPrompt("x")))
    await asyncio.sleep(0)
    (message,) = queue.drain()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert queue.drain() == [AbortRequest(message.rid)]
    call = asyncio.create_task(client.tokenize(TextPrompt("x")))
    await asyncio.sleep(0)
    client.handle(RequestFailed(queue.drain()[0].rid, 400, "no"))
    with pytest.raises(RequestError):
        await call
    assert queue.drain() == []


async def test_a_consumer_that_does_not_read_is_aborted(client, queue, monkeypatch):
    monkeypatch.setattr(client_module, "MAX_UNREAD_OUTPUTS", 100)
    called = []
    generation = client.generate(request())
    generation.on_overflow(lambda: called.append(1))
    for _ in range(101):
        client.handle(TextOutputs([output()]))
    assert called == [1] and aborts(queue) == ["r"] and client.num_requests == 0
    with pytest.raises(RequestError, match="does not read") as caught:
        await anext(generation)
    assert caught.value.status == 408


async def test_much_text_is_too_much_as_well_and_reading_makes_room(client, queue):
    generation = client.generate(request())
    for _ in range(5):
        client.handle(TextOutputs([output(text="x" * 400_000)]))
        await anext(generation)
    assert aborts(queue) == []
    for _ in range(3):
        client.handle(TextOutputs([output(text="x" * 400_000)]))
    assert aborts(queue) == ["r"]


async def test_the_observer_sees_times_per_token(queue):
    now = [10.0]
    client, watcher = AddressedClient(queue, clock=lambda: now[0]), Watcher()
    client.observe(watcher)
    generation = client.generate(request(num_choices=2))
    now[0] = 11.0
    client.handle(TextOutputs([output(choice=0, text="ab"), output(choice=1)]))
    now[0] = 11.5
    client.handle(
        TextOutputs([output(choice=0, text="abcd", finish="stop"), output(choice=1, text="", finish="length")])
    )
    assert watcher.first == [1.0] and watcher.more == [(4, 0.5)] and watcher.ends == [("length", 1.5)]
    assert len(await generation.take()) == 4


async def test_a_full_queue_leaves_nothing_behind():
    class Full:
        def __init__(self):
            self.left = 1

        def put(self, message):
            if isinstance(message, Generate) and self.left:
                self.left -= 1
            else:
                raise WorkerDied("unread messages")

    client = Client(Full())
    with pytest.raises(WorkerDied):
        client.generate(request("a"), request("b"), name="all")
    assert client.num_requests == client.num_choices == 0 and not client.abort("all")
