"""Ids of requests: the client's own where it sends a usable one."""

import re
import uuid

from starlette.requests import Request

HEADER = b"x-request-id"
_USABLE = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


def choose_request_id(sent: bytes | None) -> str:
    """The X-Request-Id as sent, if it is short and harmless; a new one otherwise."""
    if sent is not None and _USABLE.fullmatch(sent):
        return sent.decode("ascii")
    return uuid.uuid4().hex


def new_answer_id(request: Request, prefix: str) -> str:
    """The id of one answer, which is also its rid: `<prefix>-<unique>`, or `<X-Request-Id>-<unique>` if one was sent.

    A client may send one X-Request-Id twice (a retry), so it is only the beginning.
    """
    sent = request.headers.get("x-request-id", "").encode("latin-1")
    start = sent.decode("ascii") if _USABLE.fullmatch(sent) else prefix
    return f"{start}-{uuid.uuid4().hex}"
