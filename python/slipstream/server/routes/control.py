"""POST /flush_cache and /abort_request."""

from starlette.requests import Request
from starlette.responses import Response

from slipstream.errors import RequestError
from slipstream.server.body import read_object
from slipstream.server.context import Context
from slipstream.server.error_body import JSONResponse
from slipstream.server.schemas.base import parse
from slipstream.server.schemas.control import AbortBody


async def flush_cache(request: Request, context: Context) -> Response:
    """Forget cached prompts; 400 while requests are in flight."""
    if context.client.num_requests:
        raise RequestError(
            f"{context.client.num_requests} requests are in flight; the cache can be flushed when none is", code="busy"
        )
    await context.client.flush_cache()
    return JSONResponse({"message": "the cache is flushed"})


async def abort_request(request: Request, context: Context) -> Response:
    """End one request by its exact id, or all. An unknown id is no error: the request may have ended just now."""
    body = parse(AbortBody, await read_object(request, context.config.max_request_bytes))
    body.check()
    num_aborted = context.client.abort_all() if body.rid is None else int(context.client.abort(body.rid))
    return JSONResponse({"num_aborted": num_aborted})
