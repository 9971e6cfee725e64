"""Reading a request's JSON body, bounded in bytes and time."""

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request

from slipstream.errors import RequestError
from slipstream.server.disconnect import ClientGone

BODY_TIMEOUT_S = 60.0
DISCARD_FACTOR = 4  # a body above the limit is read on this far, so that the client gets to read our answer


async def read_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """The body as a JSON object. Raises RequestError (400, 408, 413, 415) with a text that says what to change."""
    check_content_type(request.headers.get("content-type"))
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            data = await _read(request, max_bytes)
    except TimeoutError:
        raise RequestError(f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s", status=408) from None
    return parse_object(data)


def check_content_type(content_type: str | None) -> None:
    """Refuse what is plainly not JSON; no header at all passes."""
    kind = (content_type or "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise RequestError(
            f"the body must be JSON: send the header 'Content-Type: application/json', not {kind[:80]!r}",
            status=415,
            code="wrong_content_type",
        )


def parse_object(data: bytes) -> dict[str, Any]:
    """Strict JSON (UTF-8, no NaN, no lone surrogates) whose outermost value is an object."""
    try:
        value = msgspec.json.decode(data)
    except UnicodeDecodeError:  # which counts from the start of one string of the body
        raise RequestError("the body is not valid UTF-8", code="invalid_json") from None
    except RecursionError:
        raise RequestError("the body is nested too deeply", code="invalid_json") from None
    except msgspec.MsgspecError as error:
        text = "it is empty" if not data.strip() else str(error)[:200]
        raise RequestError(f"the body is not valid JSON: {text}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise RequestError("the body must be a JSON object: {...}", code="invalid_json")
    return value


async def _read(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    num_bytes, too_large = 0, declared.isdigit() and int(declared[:20]) > max_bytes
    chunks: list[bytes] = []
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk: bytes = message.get("body", b"")
        num_bytes += len(chunk)
        too_large = too_large or num_bytes > max_bytes
        if too_large:
            chunks.clear()
        else:
            chunks.append(chunk)
        if not message.get("more_body", False) or num_bytes > DISCARD_FACTOR * max_bytes:
            break
    if too_large:
        raise RequestError(
            f"the body is larger than {max_bytes} bytes; send less, or raise --max-request-bytes",
            status=413,
            code="body_too_large",
        )
    return b"".join(chunks)
