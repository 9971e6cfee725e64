"""Streaming by server-sent events."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from slipstream.errors import SlipstreamError
from slipstream.messages.to_server import TextOutput
from slipstream.server.client import Generation
from slipstream.server.disconnect import while_connected
from slipstream.server.error_body import body_of

KEEPALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]  # the last one is for nginx

Encode = Callable[[Sequence[TextOutput]], list[Any]]
_encoder = msgspec.json.Encoder()


def event(value: Any) -> bytes:
    """One event with a JSON value."""
    return b"data: " + _encoder.encode(value) + b"\n\n"


class EventStream(Response):
    """Streams a Generation. A refusal before the first output is an HTTP status, a later error is an event.

    Headers go out with the first output, or after `keepalive_s` without one; a comment follows each further silence
    of that length. The request is aborted as soon as the client has gone or stops reading.

    `encode` turns outputs into the JSON values of events, `finish` gives the values after the last output, `on_error`
    is told of an error that becomes an event.
    """

    def __init__(
        self,
        generation: Generation,
        encode: Encode,
        finish: Callable[[], list[Any]],
        on_error: Callable[[SlipstreamError], None],
        keepalive_s: float,
    ) -> None:
        super().__init__()
        self._generation = generation
        self._encode = encode
        self._finish = finish
        self._on_error = on_error
        self._keepalive_s = keepalive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        give_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._generation.on_overflow(lambda: _settle(give_up))
        async with self._generation:
            await while_connected(receive, self._run(send), give_up)

    async def _run(self, send: Send) -> None:
        outputs = await self._generation.take(self._keepalive_s)
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        try:
            while True:
                if body := self._events(outputs):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                if self._generation.done:
                    break
                outputs = await self._generation.take(self._keepalive_s)
            last = [event(value) for value in self._finish()]
        except SlipstreamError as error:
            self._on_error(error)
            last = [event(body_of(error))]
        await send({"type": "http.response.body", "body": b"".join([*last, DONE]), "more_body": False})

    def _events(self, outputs: Sequence[TextOutput]) -> bytes:
        """The events of some outputs, a comment for none. Outputs that show nothing yet make no event."""
        return b"".join(event(value) for value in self._encode(outputs)) if outputs else KEEPALIVE


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
