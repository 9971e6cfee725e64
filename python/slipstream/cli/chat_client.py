"""The HTTP side of `slipstream chat`: one streamed answer at a time."""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from slipstream.bench.connection import API_KEY_VARIABLE, CONNECT_TIMEOUT_S, auth_headers, base_url, error_text
from slipstream.bench.sse import EventParser
from slipstream.bench.stream_events import DONE, StreamFailed, read_chat
from slipstream.errors import ConfigError, SlipstreamError

READ_TIMEOUT_S = 120.0  # of silence; a live server sends a comment every --sse-keepalive-s


class AnswerFailed(SlipstreamError):
    """The server refused this question, or the answer broke off. The chat can go on."""


@dataclass
class Timing:
    """How long one answer took. Filled in while it streams."""

    num_tokens: int | None = None
    first_text_s: float | None = None  # since the question was sent
    total_s: float | None = None

    def describe(self) -> str | None:
        """One line for the person at the terminal; None when the server sent no counts."""
        if not self.num_tokens or not self.total_s or self.first_text_s is None:
            return None
        rate = self.num_tokens / self.total_s
        return f"{self.num_tokens} tokens, {rate:.1f} tokens/s, first after {1000 * self.first_text_s:.0f} ms"


class ChatClient:
    """Talks to POST /v1/chat/completions of one server. `sampling` holds request fields; None values are not sent."""

    def __init__(self, url: str, api_key: str | None, sampling: Mapping[str, Any]) -> None:
        self.url = base_url(url)
        self._sampling = {name: value for name, value in sampling.items() if value is not None}
        self._http = httpx.Client(
            base_url=self.url,
            headers=auth_headers(api_key),
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=False,  # a proxy cannot reach a server on this machine
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def model_name(self) -> str:
        """What the server calls its model. Raises ConfigError when there is no server or it refuses us."""
        try:
            response = self._http.get("/v1/models")
        except httpx.HTTPError as error:
            raise self._no_server(error) from None
        if response.status_code in (401, 403):
            raise ConfigError(f"the server at {self.url} wants a key: give it with --api-key or in {API_KEY_VARIABLE}")
        if not response.is_success:
            raise ConfigError(f"{self.url}: HTTP {response.status_code}: {error_text(response.content)}")
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise ConfigError(f"{self.url} answers, but not as a server of the OpenAI API") from None

    def answer(self, messages: Sequence[Mapping[str, str]], timing: Timing) -> Generator[str]:
        """The pieces of the answer as they come. Raises AnswerFailed, or ConfigError when the server has gone."""
        body = {**self._sampling, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
        started_s = time.perf_counter()
        try:
            with self._post(body) as response:
                if not response.is_success:
                    response.read()
                    raise AnswerFailed(f"HTTP {response.status_code}: {error_text(response.content)}")
                for text in self._texts(response, timing):
                    if timing.first_text_s is None:
                        timing.first_text_s = time.perf_counter() - started_s
                    yield text
        except httpx.ConnectError as error:
            raise self._no_server(error) from None
        except httpx.HTTPError as error:
            raise AnswerFailed(f"the answer broke off ({type(error).__name__})") from None
        except StreamFailed as error:
            raise AnswerFailed(str(error)) from None
        finally:
            timing.total_s = time.perf_counter() - started_s

    def _post(self, body: dict[str, Any]) -> AbstractContextManager[httpx.Response]:
        return self._http.stream("POST", "/v1/chat/completions", json=body)

    def _texts(self, response: httpx.Response, timing: Timing) -> Generator[str]:
        parser = EventParser()
        for piece in response.iter_bytes():
            for data in parser.push(piece):
                if data == DONE:
                    continue
                progress = read_chat(data)
                if progress.num_tokens is not None:
                    timing.num_tokens = progress.num_tokens
                if progress.text:
                    yield progress.text

    def _no_server(self, error: httpx.HTTPError) -> ConfigError:
        return ConfigError(
            f"no server answers at {self.url} ({type(error).__name__}): start one with `slipstream serve`, "
            "or name another with --base-url"
        )
