"""What a route is: one line of the table."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from starlette.requests import Request
from starlette.responses import Response

from slipstream.errors import Overloaded, RequestError
from slipstream.server.auth import Access
from slipstream.server.context import Context
from slipstream.server.schemas.base import Schema
from slipstream.server.state import ServerState

RETRY_STARTING_S, RETRY_DRAINING_S = 2, 10

Handler = Callable[[Request, Context], Awaitable[Response]]


class Gate(Enum):
    """When a route answers."""

    ALWAYS = "always"
    STARTED = "started"  # once the server was ready, also while it drains
    ACCEPTING = "accepting"  # only while new work is welcome


@dataclass(frozen=True)
class Route:
    """`body` is the schema that the API page shows."""

    method: str
    path: str
    handler: Handler
    access: Access = Access.KEY
    gate: Gate = Gate.STARTED
    body: type[Schema] | None = None


def check_gate(gate: Gate, state: ServerState) -> None:
    """Raise 503 when the route does not answer in this phase. Pure."""
    if gate is Gate.ALWAYS:
        return
    if state.phase == "starting":
        raise Overloaded(f"the server is starting: {state.stage}", retry_after_s=RETRY_STARTING_S)
    if state.phase == "draining" and gate is Gate.ACCEPTING:
        raise Overloaded("the server is shutting down and takes no new requests", retry_after_s=RETRY_DRAINING_S)
    if state.phase == "failed":
        raise RequestError(f"the server has failed: {state.stage}", status=503, code="runtime_failed")
