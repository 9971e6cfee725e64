"""What one event of a streamed answer says about its progress, for the native route and for OpenAI's chat."""

from dataclasses import dataclass
from typing import Any

import msgspec

from slipstream.errors import SlipstreamError
from slipstream.messages.sampling import DraftStats

DONE = b"[DONE]"


@dataclass(frozen=True)
class Progress:
    """`num_tokens` counts all tokens generated so far; None where the event does not say."""

    num_tokens: int | None = None
    text: str = ""  # the new text, of a chat; the native route's is not decoded
    prompt_len: int | None = None
    num_cached: int | None = None
    finish: str | None = None
    acceptance_length: float | None = None
    drafts: DraftStats | None = None


class _MetaInfo(msgspec.Struct, frozen=True):
    completion_tokens: int
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: dict[str, Any] | None = None
    spec_accept_length: float | None = None
    spec_num_proposed_drafts: int | None = None
    spec_correct_drafts_histogram: tuple[int, ...] | None = None


class _NativeEvent(msgspec.Struct, frozen=True):
    # The cumulative text and ids are not decoded: a client that did would slow the server it shares a machine with.
    meta_info: _MetaInfo | None = None
    error: dict[str, Any] | None = None


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _Details | None = None


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta
    finish_reason: str | None = None


class _Drafts(msgspec.Struct, frozen=True):
    mean_acceptance_length: float | None = None
    num_draft_tokens: int | None = None
    acceptance_histogram: tuple[int, ...] | None = None


class _Metrics(msgspec.Struct, frozen=True):
    speculative_decoding: _Drafts | None = None


class _ChatEvent(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    metrics: _Metrics | None = None
    error: dict[str, Any] | None = None


_native = msgspec.json.Decoder(_NativeEvent)
_chat = msgspec.json.Decoder(_ChatEvent)


class StreamFailed(SlipstreamError):
    """The server reported an error inside a stream, or sent what is no event of this kind."""


def read_native(data: bytes) -> Progress:
    """An event of POST /generate. Raises StreamFailed."""
    event = _decode(_native, data)
    meta = event.meta_info
    if meta is None:
        raise StreamFailed("an event without meta_info")
    finish = str(meta.finish_reason.get("type")) if meta.finish_reason else None
    return Progress(
        num_tokens=meta.completion_tokens,
        prompt_len=meta.prompt_tokens,
        num_cached=meta.cached_tokens,
        finish=finish,
        acceptance_length=meta.spec_accept_length,
        drafts=_drafts(meta.spec_num_proposed_drafts, meta.spec_correct_drafts_histogram),
    )


def read_chat(data: bytes) -> Progress:
    """A chunk of POST /v1/chat/completions. Raises StreamFailed."""
    event = _decode(_chat, data)
    usage, details = event.usage, event.usage.prompt_tokens_details if event.usage else None
    drafts = event.metrics.speculative_decoding if event.metrics else None
    return Progress(
        num_tokens=usage.completion_tokens if usage else None,
        text="".join(choice.delta.content or "" for choice in event.choices),
        prompt_len=usage.prompt_tokens if usage else None,
        num_cached=details.cached_tokens if details else None,
        finish=next((choice.finish_reason for choice in event.choices if choice.finish_reason), None),
        acceptance_length=drafts.mean_acceptance_length if drafts else None,
        drafts=_drafts(drafts.num_draft_tokens, drafts.acceptance_histogram) if drafts else None,
    )


def _drafts(num_draft_tokens: int | None, histogram: tuple[int, ...] | None) -> DraftStats | None:
    """None where the server does not say both."""
    return None if num_draft_tokens is None or histogram is None else DraftStats(num_draft_tokens, histogram)


def _decode(decoder: "msgspec.json.Decoder[Any]", data: bytes) -> Any:
    try:
        event = decoder.decode(data)
    except msgspec.DecodeError as error:
        raise StreamFailed(f"an event that cannot be read: {error}") from None
    if event.error is not None:
        raise StreamFailed(str(event.error.get("message", event.error)))
    return event
