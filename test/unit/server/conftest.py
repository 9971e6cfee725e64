"""A tokenizer side that answers by echoing the prompt's bytes, in this process or behind a real uvicorn."""

import asyncio
import codecs
import dataclasses
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from slipstream.config.processes import ServerConfig
from slipstream.messages.queues import LocalQueue
from slipstream.messages.sampling import DraftStats, FinishReason
from slipstream.messages.to_server import Detokenized, TextOutput, TextOutputs, Tokenized, TokenText
from slipstream.messages.to_tokenizer import (
    AbortRequest,
    ChatPrompt,
    Counters,
    Detokenize,
    FlushCache,
    FlushDone,
    FromServer,
    Generate,
    RequestFailed,
    SchedulerReady,
    SchedulerStatus,
    TextPrompt,
    Tokenize,
)
from slipstream.server.app import create_app
from slipstream.server.client import Client
from slipstream.server.state import ServerState

EOS = 256
CONFIG = ServerConfig(
    host="127.0.0.1",
    port=0,
    api_key=None,
    served_model_name="echo",
    vocab_size=257,
    context_length=512,
    max_running_requests=4,
    max_queued_requests=4,
    watchdog_timeout_s=5.0,
    drain_timeout_s=1.0,
    sse_keepalive_s=15.0,
    max_request_bytes=256 * 1024,
    max_images=0,
    allowed_media_domains=(),
    random_seed=7,
    log_level="info",
)


class FakeTokenizer:
    """Echoes each prompt, one byte for each token. What a prompt says can change that:

    "HANG" never answers; "SLOW" waits 50 ms before each token; "FAIL" is refused; "BREAK" fails after two tokens.
    """

    def __init__(self) -> None:
        self.queue: LocalQueue[FromServer] = LocalQueue()
        self.seen: list[FromServer] = []
        self.busy = False  # flushes are refused
        self.drafts: dict[int, DraftStats] = {}  # by choice: what speculation did, said with every output
        self._tasks: set[asyncio.Task[None]] = set()

    def of(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.seen if isinstance(message, kind)]

    async def run(self, client: Client) -> None:
        running: dict[str, asyncio.Task[None]] = {}
        while True:
            for message in self.queue.drain():
                self.seen.append(message)
                match message:
                    case Generate():
                        running[message.rid] = asyncio.create_task(self._generate(message, client))
                    case AbortRequest(rid=rid) if rid in running:
                        running.pop(rid).cancel()
                    case Tokenize():
                        client.handle(Tokenized(message.rid, list(prompt_bytes(message.prompt))))
                    case Detokenize():
                        text = bytes(i for i in message.token_ids if i < EOS).decode("utf-8", "replace")
                        client.handle(Detokenized(message.rid, text))
                    case FlushCache():
                        client.handle(FlushDone(message.rid, "requests run" if self.busy else None))
                    case _:
                        pass
            await asyncio.sleep(0.001)

    async def _generate(self, message: Generate, client: Client) -> None:
        data = prompt_bytes(message.prompt)
        if b"FAIL" in data:
            client.handle(RequestFailed(message.rid, 400, "too long", "prompt", "context_length_exceeded"))
            return
        if b"HANG" in data:
            return
        decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(message.num_choices)]
        length = min(message.sampling.max_new_tokens, len(data))
        for position in range(max(length, 1)):  # no new tokens: one output, which has the prompt's parts
            await asyncio.sleep(0.05 if b"SLOW" in data else 0)
            if b"BREAK" in data and position == 2:
                client.handle(RequestFailed(message.rid, 500, "the step failed"))
                return
            client.handle(
                TextOutputs(
                    [
                        self._output(message, data, position, choice, decoder, last=position >= length - 1)
                        for choice, decoder in enumerate(decoders)
                    ]
                )
            )

    def _output(
        self, message: Generate, data: bytes, position: int, choice: int, decoder: Any, last: bool
    ) -> TextOutput:
        finish = None
        if last:
            stopped = position == len(data) - 1 and message.sampling.max_new_tokens > 0
            finish = FinishReason("stop", EOS) if stopped else FinishReason("length")
        new = data[position : position + 1] if message.sampling.max_new_tokens else b""
        first = position == 0
        wants = message.sampling.prompt_logprobs_from
        return TextOutput(
            message.rid,
            choice,
            decoder.decode(new, last),
            list(new),
            len(data),
            1,
            position + len(new),
            finish,
            [token_text(data, position, message.sampling.top_logprobs) for _ in new]
            if message.sampling.top_logprobs is not None
            else None,
            [token_text(data, i, message.sampling.top_logprobs, prompt=True) for i in range(wants, len(data))]
            if first and wants is not None
            else None,
            data.decode("utf-8", "replace") if first and message.echo else None,
            list(data) if first and message.echo else None,
            self.drafts.get(choice),
        )


def token_text(data: bytes, position: int, num_top: int | None, prompt: bool = False) -> TokenText:
    """Logprob -(position + 1); alternatives are the letters a, b, ... at -1, -2, ..."""
    if prompt and position == 0:
        return TokenText(data[0], data[:1], None)
    top = [(97 + i, bytes([97 + i]), -float(i + 1)) for i in range(num_top or 0)]
    return TokenText(data[position], data[position : position + 1], -float(position + 1), top)


def prompt_bytes(prompt: Any) -> bytes:
    """What the fake makes of a prompt."""
    if isinstance(prompt, TextPrompt):
        return prompt.text.encode() or b"\n"
    if isinstance(prompt, ChatPrompt):
        contents = [message["content"] for message in prompt.messages]
        return (
            "".join(
                content if isinstance(content, str) else "".join(map(part_text, content)) for content in contents
            ).encode()
            or b"\n"
        )
    return bytes(min(i, 255) for i in prompt.token_ids)


def part_text(part: dict[str, Any]) -> str:
    """A text, or the size of an image file."""
    return part["text"] if part["type"] == "text" else f"<image of {len(part['data'])} bytes>"


class Rig:
    """One server without processes: the app, its client and state, the fake behind it."""

    def __init__(self, **changes: Any) -> None:
        self.config = dataclasses.replace(CONFIG, **changes)
        self.fake = FakeTokenizer()
        self.client = Client(self.fake.queue)
        self.state = ServerState()
        self.app = create_app(
            self.config, self.client, self.state, lambda: {"model_path": "/models/echo", "api_key": self.config.api_key}
        )
        self.make_ready()

    def make_ready(self) -> None:
        self.state.handle(SchedulerReady(512, 32, 16, {"device": "cpu"}), time.monotonic())
        self.state.handle(SchedulerStatus(1, 2, 32, 20, 4, 0.0, Counters(num_generated_tokens=99)), time.monotonic())
        self.state.ready(1.5)


@asynccontextmanager
async def in_process(**changes: Any) -> AsyncIterator[tuple[Rig, httpx.AsyncClient]]:
    """The rig with an HTTP client on top, no sockets."""
    rig = Rig(**changes)
    side = asyncio.create_task(rig.fake.run(rig.client))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(rig.app), base_url="http://test", timeout=10) as http:
        yield rig, http
    side.cancel()
    await asyncio.gather(side, return_exceptions=True)


@pytest.fixture
async def rig_http() -> AsyncIterator[tuple[Rig, httpx.AsyncClient]]:
    async with in_process() as pair:
        yield pair


class LiveRig:
    """The rig behind uvicorn in a thread of its own. `url` is its address."""

    def __init__(self, **changes: Any) -> None:
        self._changes = changes
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    async def _main(self) -> None:
        self.rig = Rig(**self._changes)
        side = asyncio.create_task(self.rig.fake.run(self.rig.client))
        self.server = uvicorn.Server(
            uvicorn.Config(
                self.rig.app,
                port=0,
                lifespan="off",
                ws="none",
                http="h11",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=1,
            )
        )
        serving = asyncio.create_task(self.server.serve())
        while not self.server.started:
            await asyncio.sleep(0.005)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._started.set()
        await serving
        side.cancel()

    def until(self, condition: Callable[[], bool], timeout_s: float = 5.0) -> bool:
        """Whether the condition came true in time."""
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)
        return condition()

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(10)


@contextmanager
def live_rig(**changes: Any) -> Iterator[LiveRig]:
    live = LiveRig(**changes)
    yield live
    live.stop()


@pytest.fixture(scope="module")
def live() -> Iterator[LiveRig]:
    with live_rig() as rig:
        yield rig


@pytest.fixture
def start_live() -> Iterator[Callable[..., LiveRig]]:
    """Starts rigs with options of their own."""
    rigs: list[LiveRig] = []

    def start(**changes: Any) -> LiveRig:
        rigs.append(LiveRig(**changes))
        return rigs[-1]

    yield start
    for rig in rigs:
        rig.stop()


@pytest.fixture
def make_http() -> Callable[..., Any]:
    """in_process(), for tests that need other options."""
    return in_process


@pytest.fixture
def fake_class() -> type[FakeTokenizer]:
    return FakeTokenizer
