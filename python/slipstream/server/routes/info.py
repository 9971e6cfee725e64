"""GET /get_model_info and /get_server_info (and their newer names without get_)."""

import dataclasses
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from slipstream import __version__
from slipstream.config.options import LaunchOptions
from slipstream.messages.to_tokenizer import Counters, SchedulerStatus
from slipstream.server.context import Context
from slipstream.server.error_body import JSONResponse
from slipstream.server.state import num_tokens_limit

HIDDEN = "***"
SECRETS = frozenset(field.name for field in dataclasses.fields(LaunchOptions) if field.metadata.get("secret"))


async def get_model_info(request: Request, context: Context) -> Response:
    """What is served."""
    info = without_secrets(context.server_info())
    return JSONResponse(
        {
            "model_path": info.get("model_path"),
            "tokenizer_path": info.get("tokenizer_path"),
            "is_generation": True,
            "served_model_name": context.config.served_model_name,
            "vocab_size": context.config.vocab_size,
            "max_model_len": num_tokens_limit(context.state, context.config.context_length),
        }
    )


async def get_server_info(request: Request, context: Context) -> Response:
    """How it is served: the resolved options, the version, the scheduler's last status, what speculation does."""
    state = context.state
    speculation = describe_speculation(context.config.speculative_algorithm, state.status)
    status = msgspec.to_builtins(state.status) if state.status is not None else {}
    scheduler = msgspec.to_builtins(state.scheduler) if state.scheduler is not None else {}
    for tagged in (status, scheduler):
        tagged.pop("type", None)
    status.update(status.pop("counters", {}))
    return JSONResponse(
        {
            **without_secrets(context.server_info()),
            "version": __version__,
            "phase": state.phase,
            "startup_time": state.startup_s,
            "scheduler": scheduler,
            "status": status,
            "num_choices_in_flight": context.client.num_choices,
            "speculative": speculation,
            "internal_states": [{**status, **_sglang_average(speculation)}],  # the names by which SGLang's bench looks
        }
    )


def describe_speculation(algorithm: str | None, status: SchedulerStatus | None) -> dict[str, Any] | None:
    """The algorithm, the depth of now, and what was counted since the start; None for a server without. Pure."""
    if algorithm is None:
        return None
    counters = status.counters if status is not None else Counters()
    return {
        "algorithm": algorithm,
        "num_steps_now": status.draft_depth if status is not None else None,
        "avg_accept_length": counters.acceptance_length,
        "num_drafts": counters.num_drafts,
        "num_draft_tokens": counters.num_draft_tokens,
        "num_accepted_tokens": counters.num_accepted_tokens,
        "num_accepted_per_position": counters.num_accepted_per_position,
    }


def _sglang_average(speculation: dict[str, Any] | None) -> dict[str, float]:
    length = speculation["avg_accept_length"] if speculation is not None else None
    return {} if length is None else {"avg_spec_accept_length": length}


def without_secrets(value: Any) -> Any:
    """The value with every secret flag in it, at any depth, replaced by asterisks. Pure."""
    if isinstance(value, dict):
        return {
            name: HIDDEN if name in SECRETS and inner is not None else without_secrets(inner)
            for name, inner in value.items()
        }
    return [without_secrets(inner) for inner in value] if isinstance(value, (list, tuple)) else value
