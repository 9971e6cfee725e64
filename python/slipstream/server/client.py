"""The asyncio client of the tokenizer process: requests in, text out. No HTTP: the offline Engine uses it too."""

import asyncio
import itertools
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Protocol

import msgspec

from slipstream.errors import Overloaded, RequestError, SlipstreamError, WorkerDied
from slipstream.log import get_logger
from slipstream.messages.queues import Outbox
from slipstream.messages.sampling import FinishReason
from slipstream.messages.to_server import Detokenized, ProcessFailed, TextOutput, TextOutputs, Tokenized, ToServer
from slipstream.messages.to_tokenizer import (
    AbortRequest,
    Detokenize,
    FlushCache,
    FlushDone,
    FromServer,
    Generate,
    Prompt,
    RequestFailed,
    Tokenize,
)

log = get_logger(__name__)

MAX_UNREAD_OUTPUTS = 4096  # for each stream; streams of more than 64 choices get 64 for each choice
MAX_UNREAD_CHARACTERS = 2**20  # likewise, about 1 MiB of text
MAX_CALLS = 256  # tokenize, detokenize and flush calls that may wait for their answers
CALL_TIMEOUT_S = 60.0


class Observer(Protocol):
    """Is told what happens to requests, at the moment in which messages arrive. Times are in seconds."""

    def first_output(self, waited_s: float) -> None:
        """The first output of a request came `waited_s` after the request was sent."""

    def tokens(self, count: int, elapsed_s: float) -> None:
        """`count` more tokens of one choice came `elapsed_s` after its tokens before."""

    def ended(self, outcome: str, elapsed_s: float) -> None:
        """A request ended: "stop", "length", "abort" (by anybody) or "error"."""


class _Request:
    """One prompt in flight: which of its choices still run, and when things happened.

    `rid` is the caller's; `key` is the rid of its messages.
    """

    def __init__(self, generate: Generate, key: str, stream: "_Stream", now: float) -> None:
        self.rid = generate.rid
        self.key = key
        self.num_choices = generate.num_choices
        self.stream = stream
        self.running = set(range(generate.num_choices))
        self.last: dict[int, TextOutput] = {}  # the last output of each running choice
        self.last_time: dict[int, float] = {}
        self.started = now


class _Stream:
    """What has arrived for one consumer and was not read yet. Knows nothing of the consumer, which may vanish."""

    def __init__(self, name: str, num_choices: int) -> None:
        self.name = name
        self.requests: dict[str, _Request] = {}  # those still running, by key
        self.unread: deque[TextOutput] = deque()
        self.num_characters = 0
        self.max_outputs = max(MAX_UNREAD_OUTPUTS, 64 * num_choices)
        self.max_characters = max(MAX_UNREAD_CHARACTERS, MAX_UNREAD_CHARACTERS // 64 * num_choices)
        self.error: SlipstreamError | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.on_overflow: Callable[[], None] | None = None
        self._wake_time = 0.0  # of the event loop's clock
        self._timer: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def wake_after(self, timeout_s: float, loop: asyncio.AbstractEventLoop) -> None:
        """Wake who waits now, if nothing else does. One timer serves all waits of a stream: there is one each step."""
        self._wake_time = loop.time() + timeout_s
        if self._timer is not None and self._timer.when() > self._wake_time:
            self.stop_timer()
        if self._timer is None:
            self._timer = loop.call_at(self._wake_time, self._on_timer, loop)

    def stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        is_early = self._timer is not None and self._timer.when() < self._wake_time
        self._timer = loop.call_at(self._wake_time, self._on_timer, loop) if is_early else None
        if not is_early:
            self.wake()


class Generation(AsyncIterator[TextOutput]):
    """The answer to one Generate or to several sent together: their outputs interleaved, each marked by rid and choice.

    It ends when every choice has finished, and raises what ended it otherwise: RequestError, Overloaded or WorkerDied.
    Leaving it early in any way (close, cancellation, dropping the last reference) aborts what still runs, once.
    For one consumer.
    """

    def __init__(self, client: "Client", stream: _Stream) -> None:
        self._client = client
        self._stream = stream

    @property
    def name(self) -> str:
        """The id by which Client.abort() ends all of it."""
        return self._stream.name

    @property
    def done(self) -> bool:
        """Every choice has finished and every output was read."""
        return not self._stream.requests and not self._stream.unread and self._stream.error is None

    async def take(self, timeout_s: float | None = None) -> list[TextOutput]:
        """Everything that has arrived. Waits until something has; empty after `timeout_s`, or when `done`."""
        stream = self._stream
        if not stream.unread and stream.error is None and stream.requests:
            await self._wait(timeout_s)
        outputs = list(stream.unread)
        stream.unread.clear()
        stream.num_characters = 0
        if not outputs and stream.error is not None:
            raise stream.error.with_traceback(None)
        return outputs

    async def _wait(self, timeout_s: float | None) -> None:
        """Until something has arrived or the time is over; cancellation aborts the request."""
        stream = self._stream
        loop = asyncio.get_running_loop()
        stream.waiter = loop.create_future()
        if timeout_s is None:
            stream.stop_timer()
        else:
            stream.wake_after(timeout_s, loop)
        try:
            await stream.waiter
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            stream.waiter = None

    async def __anext__(self) -> TextOutput:
        stream = self._stream
        while not stream.unread:
            if stream.error is not None:
                raise stream.error.with_traceback(None)
            if not stream.requests:
                raise StopAsyncIteration
            await self._wait(None)
        output = stream.unread.popleft()
        stream.num_characters -= len(output.text)
        return output

    def on_overflow(self, call: Callable[[], None]) -> None:
        """Call this when the consumer was so slow that the request was aborted."""
        self._stream.on_overflow = call

    def close(self) -> None:
        """Abort what still runs; harmless when nothing does."""
        self._client._abandon(self._stream)

    async def aclose(self) -> None:
        """close(), for contextlib.aclosing."""
        self.close()

    async def __aenter__(self) -> "Generation":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Client:
    """Sends requests to the tokenizer and hands what comes back to whoever waits for it.

    All methods run in one event loop; whoever owns the inbox calls handle() there with each message.

    A rid may be used again as soon as its request has ended or was aborted, while text of the old one is still on its
    way. So in messages every request has a rid that never comes twice: a number in front of the caller's.
    """

    def __init__(self, to_tokenizer: Outbox[FromServer], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._to_tokenizer = to_tokenizer
        self._clock = clock
        self._numbers = itertools.count()
        self._keys: dict[str, str] = {}  # rid -> key of the request in flight
        self._requests: dict[str, _Request] = {}  # by key
        self._streams: dict[str, _Stream] = {}
        self._calls: dict[str, asyncio.Future[Any]] = {}
        self._observer: Observer | None = None
        self._failure: SlipstreamError | None = None
        self.num_choices = 0  # of all requests in flight; what admission counts

    @property
    def num_requests(self) -> int:
        """Prompts in flight, running or queued."""
        return len(self._requests)

    def observe(self, observer: Observer) -> None:
        """Report to `observer` from now on."""
        self._observer = observer

    def generate(self, *requests: Generate, name: str | None = None) -> Generation:
        """Send the requests, all or none, and return their answer. `name` is an id to abort all of them by.

        Raises RequestError for a rid that is in use, and what fail_all() was given when the runtime is dead.
        """
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        name = name or requests[0].rid
        rids = [request.rid for request in requests]
        for rid in {name, *rids}:
            if rid in self._keys or rid in self._streams or rids.count(rid) > 1:
                raise RequestError(
                    f"rid {rid!r} is in use by another request; send another one, or none",
                    param="rid",
                    code="duplicate_rid",
                )
        stream = _Stream(name, sum(request.num_choices for request in requests))
        self._streams[name] = stream
        now = self._clock()
        try:
            for request in requests:
                key = f"{next(self._numbers)}:{request.rid}"
                self._to_tokenizer.put(msgspec.structs.replace(request, rid=key))
                self._keys[request.rid] = key
                self._requests[key] = stream.requests[key] = _Request(request, key, stream, now)
                self.num_choices += request.num_choices
        except WorkerDied:
            self._abandon(stream)
            self._streams.pop(name, None)
            raise
        return Generation(self, stream)

    async def tokenize(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, as generate() would use them."""
        rid = new_rid("tokenize")
        ids: list[int] = await self._call(Tokenize(rid, prompt))
        return ids

    async def detokenize(self, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        text: str = await self._call(Detokenize(new_rid("detokenize"), token_ids, skip_special_tokens))
        return text

    async def flush_cache(self, *, counters: bool = False) -> None:
        """Forget all cached prefixes, and with `counters` what was counted; raises RequestError while requests run."""
        await self._call(FlushCache(new_rid("flush"), counters))

    def abort(self, name: str) -> bool:
        """End exactly this request: its choices finish with reason "abort". False if nobody has this rid or name."""
        if (stream := self._streams.get(name)) is not None:
            requests = list(stream.requests.values())
        elif (key := self._keys.get(name)) is not None:
            requests = [self._requests[key]]
        else:
            return False
        for request in requests:
            for choice in sorted(request.running):
                request.stream.unread.append(_aborted(request, choice))
            self._end(request, "abort", abort=True)
        return True

    def abort_all(self) -> int:
        """abort() everything; says how many requests that were."""
        names = list(self._streams)
        num_requests = self.num_requests
        for name in names:
            self.abort(name)
        return num_requests

    def handle(self, message: ToServer) -> None:
        """Take one message. What no request waits for (any more) is dropped."""
        match message:
            case TextOutputs(outputs=outputs):
                now = self._clock()
                for output in outputs:
                    self._deliver(output, now)
            case RequestFailed(rid=rid):
                self._fail(rid, _to_error(message))
            case Tokenized(rid=rid, token_ids=token_ids):
                self._answer(rid, token_ids)
            case Detokenized(rid=rid, text=text):
                self._answer(rid, text)
            case FlushDone(rid=rid, error=None):
                self._answer(rid, None)
            case FlushDone(rid=rid, error=str(error)):
                self._fail(rid, RequestError(f"the cache was not flushed: {error}", code="busy"))
            case ProcessFailed(process=process, message=text):
                self.fail_all(WorkerDied(f"the {process} process failed: {text}"))
            case _:
                pass  # life signs and progress are for ServerState and the launcher

    def fail_all(self, error: SlipstreamError) -> None:
        """The runtime cannot go on: end every request, now and from now on, with `error`."""
        self._failure = self._failure or error
        for request in list(self._requests.values()):
            request.stream.error = error
            self._end(request, "error", abort=False)
        for rid in list(self._calls):
            self._fail(rid, error)

    def _deliver(self, output: TextOutput, now: float) -> None:
        request = self._requests.get(output.rid)
        if request is None or output.choice not in request.running:
            return
        output = msgspec.structs.replace(output, rid=request.rid)
        self._measure(request, output, now)
        stream = request.stream
        stream.unread.append(output)
        stream.num_characters += len(output.text)
        request.last[output.choice] = output
        if output.finish is not None:
            request.running.discard(output.choice)
        if not request.running:
            assert output.finish is not None
            self._end(request, output.finish.type, abort=False)
        elif len(stream.unread) > stream.max_outputs or stream.num_characters > stream.max_characters:
            self._overflow(stream)
        else:
            stream.wake()

    def _measure(self, request: _Request, output: TextOutput, now: float) -> None:
        if self._observer is None:
            return
        if not request.last:
            self._observer.first_output(now - request.started)
        before = request.last_time.get(output.choice)
        if output.token_ids:
            if before is not None:
                self._observer.tokens(len(output.token_ids), now - before)
            request.last_time[output.choice] = now

    def _overflow(self, stream: _Stream) -> None:
        stream.error = RequestError(
            f"aborted: the client does not read; more than {stream.max_outputs} outputs or "
            f"{stream.max_characters} characters were waiting",
            status=408,
            code="slow_reader",
        )
        stream.unread.clear()
        log.warning("request %s aborted: its client does not read", stream.name)
        self._abandon(stream)
        if stream.on_overflow is not None:
            stream.on_overflow()

    def _fail(self, rid: str, error: SlipstreamError) -> None:
        if (call := self._calls.pop(rid, None)) is not None and not call.done():
            call.set_exception(error)
        if (request := self._requests.get(rid)) is not None:
            request.stream.error = error
            self._end(request, "error", abort=False)
            self._abandon(request.stream)  # its siblings have no use without it

    def _abandon(self, stream: _Stream) -> None:
        for request in list(stream.requests.values()):
            self._end(request, "abort", abort=True)

    def _end(self, request: _Request, outcome: str, *, abort: bool) -> None:
        del self._requests[request.key], self._keys[request.rid], request.stream.requests[request.key]
        self.num_choices -= request.num_choices
        if not request.stream.requests:
            self._streams.pop(request.stream.name, None)
            request.stream.stop_timer()
        request.stream.wake()
        if self._observer is not None:
            self._observer.ended(outcome, self._clock() - request.started)
        if abort:
            self._send_abort(request.key)

    def _send_abort(self, key: str) -> None:
        try:
            self._to_tokenizer.put(AbortRequest(key))
        except WorkerDied as error:  # the launcher is about to notice, and nobody is left to tell
            log.warning("request %s could not be aborted: %s", key, error)

    async def _call(self, message: Tokenize | Detokenize | FlushCache) -> Any:
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if len(self._calls) >= MAX_CALLS:
            raise Overloaded(f"{MAX_CALLS} tokenize, detokenize and flush calls are waiting already; try again later")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[message.rid] = answer
        try:
            self._to_tokenizer.put(message)
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await answer
        except TimeoutError:
            raise WorkerDied(f"no answer from the tokenizer process within {CALL_TIMEOUT_S:.0f} s") from None
        finally:
            self._calls.pop(message.rid, None)
            if answer.cancelled() and isinstance(message, Tokenize):
                self._send_abort(message.rid)  # nobody waits: the images, if it has any, need not be decoded

    def _answer(self, rid: str, value: object) -> None:
        if (call := self._calls.pop(rid, None)) is not None and not call.done():
            call.set_result(value)


def new_rid(prefix: str) -> str:
    """A fresh request id, unique for all practical purposes."""
    return f"{prefix}-{uuid.uuid4().hex}"


def _to_error(failed: RequestFailed) -> RequestError:
    if failed.status == 503:
        return Overloaded(failed.message)
    return RequestError(failed.message, status=failed.status, param=failed.param, code=failed.code)


def _aborted(request: _Request, choice: int) -> TextOutput:
    """The last output of a choice that was ended from here, with the counts as far as they are known."""
    last = request.last.get(choice)
    finish = FinishReason("abort")
    if last is None:
        return TextOutput(request.rid, choice, "", [], 0, 0, 0, finish)
    return TextOutput(
        request.rid, choice, "", [], last.prompt_len, last.num_cached, last.num_generated, finish, drafts=last.drafts
    )
