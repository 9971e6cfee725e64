"""The FastAPI application: the route table, with errors in OpenAI's form."""

import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from slipstream.config.processes import ServerConfig
from slipstream.errors import Overloaded, RequestError, SlipstreamError
from slipstream.server.auth import Access
from slipstream.server.border import Border
from slipstream.server.client import Client
from slipstream.server.context import Context
from slipstream.server.error_body import JSONResponse, error_body, response_of
from slipstream.server.media import MediaLoader
from slipstream.server.metrics import Metrics
from slipstream.server.routes.route import Route, check_gate
from slipstream.server.routes.table import ROUTES
from slipstream.server.seeds import SeedSource
from slipstream.server.state import ServerState


def create_app(
    config: ServerConfig, client: Client, state: ServerState, server_info: Callable[[], dict[str, Any]]
) -> FastAPI:
    """The HTTP side of one server. Makes its Metrics observe `client`.

    `server_info` gives the resolved options of the whole run for /get_server_info; secrets in it are masked there.
    """
    metrics = Metrics(state, lambda: client.num_choices, speculates=config.speculative_algorithm is not None)
    client.observe(metrics)
    state.started_at = state.started_at or int(time.time())
    media = MediaLoader(config.allowed_media_domains)
    context = Context(config, client, state, metrics, SeedSource(config.random_seed), media, server_info)
    app = FastAPI(title="Slipstream", docs_url=None, redoc_url=None, redirect_slashes=False)
    for route in ROUTES:
        _add(app, route, context)
    _add_options(app)

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, SlipstreamError)
        _count(error, metrics)
        return response_of(error)

    app.add_exception_handler(SlipstreamError, refuse)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_middleware(
        Border,
        api_key=config.api_key,
        metrics=metrics,
        open_paths=[route.path for route in ROUTES if route.access is Access.OPEN],
    )
    return app


def _add(app: FastAPI, route: Route, context: Context) -> None:
    async def endpoint(request: Request) -> Response:
        check_gate(route.gate, context.state)
        return await route.handler(request, context)

    endpoint.__name__ = route.handler.__name__
    endpoint.__doc__ = route.handler.__doc__
    extra: dict[str, Any] | None = None
    if route.body is not None:
        content = {"application/json": {"schema": route.body.model_json_schema()}}
        extra = {"requestBody": {"required": True, "content": content}}
    app.add_api_route(
        route.path,
        endpoint,
        methods=[route.method],
        openapi_extra=extra,
        response_class=JSONResponse,
        name=f"{route.method} {route.path}",
    )
    if route.method == "GET":
        app.add_api_route(route.path, endpoint, methods=["HEAD"], include_in_schema=False)


def _add_options(app: FastAPI) -> None:
    """OPTIONS names the methods of each path. No cross-origin headers: browsers keep other sites' pages out."""
    for path in dict.fromkeys(route.path for route in ROUTES):
        methods = {route.method for route in ROUTES if route.path == path}
        allow = ", ".join(sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())))

        async def options(request: Request, allow: str = allow) -> Response:
            return Response(status_code=204, headers={"Allow": allow})

        app.add_api_route(path, options, methods=["OPTIONS"], include_in_schema=False)


def _count(error: SlipstreamError, metrics: Metrics) -> None:
    if isinstance(error, RequestError) and (error.status < 500 or isinstance(error, Overloaded)):
        metrics.rejected("overloaded" if isinstance(error, Overloaded) else f"status_{error.status}")
    else:
        metrics.failed(error)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:200]
    text = {
        404: f"there is no {path!r} here; GET /openapi.json lists the routes",
        405: f"{request.method} is not allowed on {path!r}",
    }.get(error.status_code, str(error.detail))
    return JSONResponse(error_body(text, error.status_code), error.status_code, dict(error.headers or {}))
