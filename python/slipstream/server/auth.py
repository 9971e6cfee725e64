"""Who may use which route. Anything that is not marked open needs the key."""

import hmac
from enum import Enum


class Access(Enum):
    """How a route is protected when the server has an api key."""

    OPEN = "open"
    KEY = "key"


def decide_auth(access: Access, api_key: str | None, authorization: str | None) -> str | None:
    """None lets the request pass, a text says why not. Pure; compares in constant time.

    `authorization` is the value of the header, `Bearer <key>`, as HTTP libraries decode it: one character a byte.
    """
    if api_key is None or access is Access.OPEN:
        return None
    if authorization is None:
        return "this server needs an API key: send the header 'Authorization: Bearer <key>'"
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer":
        return "the Authorization header must be of the form 'Bearer <key>'"
    if not hmac.compare_digest(key.strip().encode("latin-1", "replace"), api_key.encode("utf-8", "surrogateescape")):
        return "the API key is wrong"
    return None
