"""GET /health, /ready, /health_generate and /metrics: for machines that watch this one."""

import asyncio
import time

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from slipstream.errors import RequestError
from slipstream.messages.sampling import SamplingParams
from slipstream.messages.to_tokenizer import Generate, TextPrompt
from slipstream.server.client import new_rid
from slipstream.server.context import Context
from slipstream.server.disconnect import while_connected
from slipstream.server.error_body import JSONResponse
from slipstream.server.routes.common import start
from slipstream.server.state import health

HEALTH_GENERATE_TIMEOUT_S = 20.0


async def get_health(request: Request, context: Context) -> Response:
    """Is the runtime alive? Costs nothing; 200 also while it drains."""
    healthy, reason = health(context.state, time.monotonic(), context.config.watchdog_timeout_s)
    return _verdict(healthy, reason)


async def get_ready(request: Request, context: Context) -> Response:
    """Should requests be sent here now?"""
    healthy, reason = health(context.state, time.monotonic(), context.config.watchdog_timeout_s)
    if healthy and context.state.phase != "ready":
        healthy, reason = False, context.state.stage
    return _verdict(healthy, reason)


async def health_generate(request: Request, context: Context) -> Response:
    """Send one token through all processes, within a time limit."""
    sampling = SamplingParams(max_new_tokens=1, seed=0, temperature=0.0)
    rid = new_rid("health")
    generation = start(context, [Generate(rid, TextPrompt("health"), sampling)], rid)

    async def one_token() -> None:
        async for _ in generation:
            pass

    async with generation:
        try:
            async with asyncio.timeout(HEALTH_GENERATE_TIMEOUT_S):
                await while_connected(request.receive, one_token())
        except TimeoutError:
            raise RequestError(
                f"no token within {HEALTH_GENERATE_TIMEOUT_S:g} s", status=503, code="unhealthy"
            ) from None
    return _verdict(True, "generated one token")


async def get_metrics(request: Request, context: Context) -> Response:
    """All counters, for Prometheus."""
    return Response(context.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _verdict(good: bool, reason: str) -> Response:
    body = {"status": "ok" if good else "unavailable", "reason": reason}
    return JSONResponse(body, 200 if good else 503, {} if good else {"Retry-After": "2"})
