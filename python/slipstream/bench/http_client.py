"""The load generator's side of HTTP: one streamed request, timed."""

import inspect
import textwrap
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import httpx

from slipstream.bench.connection import CONNECT_TIMEOUT_S, auth_headers, base_url, error_text
from slipstream.bench.request_record import RequestRecord
from slipstream.bench.sse import EventParser
from slipstream.bench.stream_events import DONE, Progress, StreamFailed, read_chat, read_native
from slipstream.errors import ConfigError, SlipstreamError

SHORT_TIMEOUT_S = 30.0  # of requests that generate nothing


class LoadClient:
    """Talks to one server; use it in an `async with`."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = base_url(url)
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=auth_headers(api_key),
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),  # the case has its own limit
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=False,  # a proxy would be measured too
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def model_name(self) -> str:
        """What the server calls its model. Raises ConfigError when no server answers."""
        answer = await self._short("GET", "/v1/models")
        return str(answer["data"][0]["id"])

    async def ordinary_token_ids(self) -> list[int]:
        """Some hundreds of ids that stand for text: those that a long text has and an empty one has not."""
        special, text = [await self.tokenize(prompt) for prompt in ("", inspect.getsource(textwrap))]
        return sorted(set(text) - set(special))

    async def tokenize(self, text: str) -> list[int]:
        """The ids of a text, with what every prompt begins with."""
        tokens: list[int] = (await self._short("POST", "/tokenize", {"prompt": text}))["tokens"]
        return tokens

    async def flush_cache(self) -> str | None:
        """Empty the prefix cache. Returns why that failed, or None."""
        response = await self._http.post("/flush_cache", timeout=SHORT_TIMEOUT_S)
        return None if response.is_success else f"{response.status_code}: {error_text(response.content)}"

    async def generate(self, token_ids: list[int], output_len: int, record: RequestRecord) -> None:
        """Have a prompt continued with exactly `output_len` tokens through POST /generate."""
        sampling = {"max_new_tokens": output_len, "temperature": 0, "ignore_eos": True}
        body = {"input_ids": token_ids, "sampling_params": sampling, "stream": True}
        await self._stream("/generate", body, read_native, record)

    async def ask(self, question: str, max_tokens: int, record: RequestRecord) -> None:
        """Have a question answered through POST /v1/chat/completions, greedily."""
        body = {
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        await self._stream("/v1/chat/completions", body, read_chat, record)

    async def _stream(
        self, path: str, body: dict[str, Any], read: Callable[[bytes], Progress], record: RequestRecord
    ) -> None:
        """Send, and fill in the record. What goes wrong is in the record, not raised."""
        try:
            async with self._http.stream("POST", path, json=body) as response:
                if response.is_success:
                    await self._read(response, read, record)
                else:
                    message = error_text(await response.aread())
                    record.error = f"HTTP {response.status_code}: {message}"
        except httpx.HTTPError as error:
            record.error = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        except StreamFailed as error:
            record.error = f"error event: {error}"
        record.end(time.perf_counter())

    async def _read(self, response: httpx.Response, read: Callable[[bytes], Progress], record: RequestRecord) -> None:
        parser = EventParser()
        async for piece in response.aiter_bytes():
            now_s = time.perf_counter()
            for data in parser.push(piece):
                if data != DONE:
                    record.note(read(data), now_s)

    async def _short(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON answer of a request that must succeed."""
        try:
            response = await self._http.request(method, path, json=body, timeout=SHORT_TIMEOUT_S)
        except httpx.HTTPError as error:
            raise ConfigError(f"no server answers at {self.url} ({type(error).__name__}); see --base-url") from None
        if response.status_code == 401:
            raise ConfigError(f"the server at {self.url} wants a key; give it with --api-key")
        if not response.is_success:
            raise SlipstreamError(f"{method} {path}: HTTP {response.status_code}: {error_text(response.content)}")
        return response.json()
