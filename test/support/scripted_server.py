"""An HTTP server in a thread that answers as a test tells it to, and notes what it was asked."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Asked:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Reply:
    """An answer: a JSON body, or pieces that are sent one by one (each may block to shape time)."""

    status: int = 200
    body: Any = None
    pieces: Callable[[], Iterator[bytes]] | None = None


@dataclass
class ScriptedServer:
    """`asked` grows with each request; `broken` is set when a client leaves during an answer."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    broken: threading.Event = field(default_factory=threading.Event)


def sse(*values: Any) -> list[bytes]:
    """Events with JSON values, then the end mark."""
    return [*(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values), b"data: [DONE]\n\n"]


@contextmanager
def scripted_server(script: Callable[[Asked], Reply]) -> Iterator[ScriptedServer]:
    server = ScriptedServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(None)

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("content-length", 0)))
            self.answer(json.loads(data) if data else None)

        def answer(self, body: Any) -> None:
            asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            server.asked.append(asked)
            reply = script(asked)
            self.send_response(reply.status)
            if reply.pieces is None:
                data = json.dumps(reply.body).encode()
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                return
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            try:
                for piece in reply.pieces():
                    self.wfile.write(piece)
                    self.wfile.flush()
            except (BrokenPipeError, ConnectionResetError):
                server.broken.set()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
