"""The outermost layer: paths, ids, keys, the access log, and the last resort when something breaks."""

import re
import time
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slipstream.errors import RequestError
from slipstream.log import get_logger
from slipstream.server.auth import Access, decide_auth
from slipstream.server.disconnect import ClientGone
from slipstream.server.error_body import JSONResponse, error_body, response_of
from slipstream.server.metrics import Metrics
from slipstream.server.request_id import HEADER, choose_request_id

access_log = get_logger("slipstream.server.access")
log = get_logger(__name__)

PROBES = {"/health", "/ready", "/metrics"}  # not in the access log, whether the server is ready or not
CLIENT_GONE = 499  # what nginx calls it, for the log


def normal_path(path: str) -> str:
    """`//v1//models/` -> `/v1/models`."""
    return re.sub("/{2,}", "/", path).rstrip("/") or "/"


class Border:
    """ASGI middleware around the app. `open_paths` need no key; everything else does, known or not."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_key: str | None,
        open_paths: Iterable[str],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._api_key = api_key
        self._open_paths = frozenset(open_paths)
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = normal_path(scope["path"])
        scope = {**scope, "path": path, "raw_path": path.encode("utf-8", "surrogateescape")}
        headers = dict(scope["headers"])
        request_id = choose_request_id(headers.get(HEADER))
        sender = _Sender(send, request_id)
        started = self._clock()
        try:
            await self._guarded(scope, receive, sender)
        except ClientGone:
            sender.status = CLIENT_GONE
        except Exception as error:  # the per-request border: one bad request fails alone
            log.exception("request %s failed", request_id)
            self._metrics.failed(error)
            if sender.status:
                raise  # too late for an answer; the server cuts the connection
            answer = JSONResponse(error_body("internal error; the server's log says more", 500), 500)
            await answer(scope, receive, sender)
        finally:
            self._write_log(scope["method"], path, sender.status, self._clock() - started, request_id)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        access = Access.OPEN if scope["path"] in self._open_paths or scope["method"] == "OPTIONS" else Access.KEY
        problem = decide_auth(access, self._api_key, Headers(scope=scope).get("authorization"))
        if problem is not None:
            self._metrics.rejected("unauthorized")
            error = RequestError(problem, status=401, code="invalid_api_key")
            await response_of(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _write_log(self, method: str, path: str, status: int, elapsed_s: float, request_id: str) -> None:
        if path in PROBES and (200 <= status < 300 or status == 503):
            return
        shown = path.encode("ascii", "backslashreplace").decode("ascii")[:200]
        access_log.info("%s %r %d %.3f s %s", method, shown, status, elapsed_s, request_id)


class _Sender:
    """Adds the request id to the answer and remembers its status (0: none was sent)."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._header = (HEADER, request_id.encode("ascii"))
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), self._header]}
        await self._send(message)
