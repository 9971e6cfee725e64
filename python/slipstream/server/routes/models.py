"""GET /v1/models and /v1/models/{model}."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from slipstream.server.context import Context
from slipstream.server.error_body import JSONResponse
from slipstream.server.schemas.openai import check_model
from slipstream.server.state import num_tokens_limit


async def list_models(request: Request, context: Context) -> Response:
    """The one model that is served."""
    return JSONResponse({"object": "list", "data": [_card(context)]})


async def get_model(request: Request, context: Context) -> Response:
    """One model by its name."""
    check_model(request.path_params["model"], context.config)
    return JSONResponse(_card(context))


def _card(context: Context) -> dict[str, Any]:
    name = context.config.served_model_name
    return {
        "id": name,
        "object": "model",
        "created": context.state.started_at,
        "owned_by": "slipstream",
        "root": name,
        "parent": None,
        "max_model_len": num_tokens_limit(context.state, context.config.context_length),
    }
