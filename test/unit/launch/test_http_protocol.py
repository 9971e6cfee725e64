"""Connections without a request do not stay for ever."""

import asyncio

import pytest
import uvicorn

from slipstream.launch import http_protocol
from slipstream.launch.http_protocol import DeadlineProtocol


async def app(scope: dict, receive: object, send: object) -> None:  # type: ignore[type-arg]
    await asyncio.sleep(0.3)  # longer than the deadline of a head
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})  # type: ignore
    await send({"type": "http.response.body", "body": b"ok"})  # type: ignore[operator]


@pytest.mark.parametrize(
    ("sent", "answered"),
    [(b"", False), (b"GET / HTTP/1.1\r\nhost: x\r\n", False), (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", True)],
)
async def test_only_whole_heads_are_waited_for(sent: bytes, answered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.1)
    config = uvicorn.Config(app, http=DeadlineProtocol, port=0, lifespan="off", log_config=None)  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    data = await asyncio.wait_for(reader.read(100), 5)
    assert data.startswith(b"HTTP/1.1 200") == answered
    assert answered or data == b"", "closed without an answer"
    writer.close()
    await writer.wait_closed()
    server.should_exit = True
    await serving
