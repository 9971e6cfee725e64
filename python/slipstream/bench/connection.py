"""Where a server is and how to talk to it: shared by `slipstream chat` and `slipstream bench serving`."""

import contextlib
import json
from urllib.parse import urlsplit

from slipstream.errors import ConfigError

API_KEY_VARIABLE = "SLIPSTREAM_API_KEY"
CONNECT_TIMEOUT_S = 10.0


def base_url(text: str) -> str:
    """The server's address without a path, from what people paste (a trailing slash, or OpenAI's /v1).

    >>> base_url("http://127.0.0.1:30000/v1/")
    'http://127.0.0.1:30000'
    """
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--base-url is {text!r}; write it like http://127.0.0.1:30000")
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


def auth_headers(api_key: str | None) -> dict[str, str]:
    """The header that carries the key, if there is one."""
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def error_text(body: bytes) -> str:
    """The message of an error answer, in OpenAI's form if it has that, else its beginning."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body)["error"]["message"])
    return body[:200].decode(errors="replace").strip() or "no message"
