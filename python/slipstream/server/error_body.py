"""Errors as clients see them: OpenAI's body with the right status and headers."""

import difflib
import http
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from pydantic import ValidationError
from starlette.responses import Response

from slipstream.errors import Overloaded, RequestError, SlipstreamError

MAX_SHOWN_CHARACTERS = 80


class JSONResponse(Response):
    """A JSON answer of plain dicts and lists, encoded by msgspec."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def error_body(message: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """{"error": {...}} in OpenAI's form; the type follows from the status."""
    kind = {401: "authentication_error", 404: "not_found_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )
    return {"error": {"message": message, "type": kind, "param": param, "code": code or _default_code(status)}}


def body_of(error: SlipstreamError) -> dict[str, Any]:
    """The body for an error of ours."""
    if isinstance(error, RequestError):
        return error_body(str(error), error.status, param=error.param, code=error.code)
    return error_body(str(error), 503, code="runtime_failed")


def response_of(error: SlipstreamError) -> Response:
    """The HTTP answer for an error of ours. What is not a RequestError is a dead runtime: 503."""
    status = error.status if isinstance(error, RequestError) else 503
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, Overloaded) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    elif status == 408:
        headers["Connection"] = "close"  # the rest of the body may come at any time (RFC 9110, section 15.5.9)
    return JSONResponse(body_of(error), status, headers)


def from_validation(error: ValidationError, known: Iterable[str]) -> RequestError:
    """One readable refusal for what pydantic found: the first problem in full, the others by name."""
    problems = error.errors(include_url=False, include_context=False)
    first, param = problems[0], _path(problems[0]["loc"])
    others = sorted({_path(problem["loc"]) for problem in problems[1:]} - {param})
    if first["type"] == "extra_forbidden":
        message = unknown_field(param, str(first["loc"][-1]), known)
    elif first["type"] == "missing":
        message = f"{param} is required"
    elif first["type"] == "value_error":
        message = (
            f"{param}: {first['msg'].removeprefix('Value error, ')}"
            if param
            else first["msg"].removeprefix("Value error, ")
        )
    else:
        message = f"{param}: {_lower(first['msg'])}, got {shown(first['input'])}"
    if others:
        message += f" (also wrong: {', '.join(others[:8])})"
    return RequestError(message, param=param or None, code="invalid_value")


def unknown_field(path: str, name: str, known: Iterable[str]) -> str:
    """Text for a field that nobody knows, with the nearest name that exists."""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"unknown field {shown(path)}" + (f"; did you mean {near[0]!r}?" if near else "")


def shown(value: object) -> str:
    """A value for an error message: bounded, whatever it is."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**40:
        return "a very large number"
    if isinstance(value, (str, bytes)):
        value = value[: MAX_SHOWN_CHARACTERS + 1]
    elif isinstance(value, Sequence):
        return f"a list of {len(value)}"
    elif isinstance(value, dict):
        return f"an object of {len(value)} fields"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "..."


def _path(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(part)[:MAX_SHOWN_CHARACTERS] for part in loc)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _default_code(status: int) -> str:
    return http.HTTPStatus(status).phrase.lower().replace(" ", "_").replace("-", "_").replace("'", "")
