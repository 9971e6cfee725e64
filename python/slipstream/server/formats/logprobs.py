"""Logprobs in the three forms that clients know: chat, legacy completions, and SGLang's lists."""

import codecs
from collections.abc import Sequence
from typing import Any

from slipstream.messages.to_server import TokenText

LOWEST = -9999.0  # stands for minus infinity, which JSON does not have


def token_string(data: bytes) -> str:
    """A token's bytes as text; what is only part of a character becomes U+FFFD (the exact bytes go beside it)."""
    return data.decode("utf-8", "replace")


def finite(logprob: float) -> float:
    """The logprob as JSON can hold it."""
    return max(logprob, LOWEST)


def chat_logprobs(tokens: Sequence[TokenText]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat answer."""
    return {
        "content": [
            {
                **_chat_entry(token.data, token.logprob if token.logprob is not None else LOWEST),
                "top_logprobs": [_chat_entry(data, logprob) for _, data, logprob in token.top],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _chat_entry(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token_string(data), "logprob": finite(logprob), "bytes": list(data)}


class LegacyLogprobs:
    """`choices[].logprobs` of a completion, in pieces: keeps the place in the text from one piece to the next."""

    def __init__(self, num_top: int) -> None:
        self._num_top = num_top
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0  # characters of text complete before the next token

    def add(self, tokens: Sequence[TokenText], num_hidden: int = 0) -> dict[str, Any]:
        """The next tokens of this choice, the first `num_hidden` of which do not show in the text.

        text_offset counts characters from the start of the text.
        """
        offsets = []
        for index, token in enumerate(tokens):
            offsets.append(self._offset)
            if index >= num_hidden:
                self._offset += len(self._decoder.decode(token.data))
        return {
            "tokens": [token_string(token.data) for token in tokens],
            "token_logprobs": [None if token.logprob is None else finite(token.logprob) for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens] if self._num_top else None,
            "text_offset": offsets,
        }

    def _top(self, token: TokenText) -> dict[str, float] | None:
        """The likeliest tokens and the chosen one; of tokens that look alike the likelier counts."""
        if token.logprob is None:
            return None
        result: dict[str, float] = {}
        for data, logprob in [*((data, logprob) for _, data, logprob in token.top), (token.data, token.logprob)]:
            text = token_string(data)
            result[text] = max(result.get(text, LOWEST), finite(logprob))
        return result


def native_logprobs(tokens: Sequence[TokenText], with_text: bool) -> list[list[Any]]:
    """SGLang's form: [logprob or null, token id, text or null] for each token."""
    return [
        [
            None if token.logprob is None else finite(token.logprob),
            token.token_id,
            token_string(token.data) if with_text else None,
        ]
        for token in tokens
    ]


def native_top_logprobs(tokens: Sequence[TokenText], with_text: bool) -> list[list[list[Any]] | None]:
    """SGLang's form of the likeliest tokens at each position; null where there is no logprob."""
    return [
        None
        if token.logprob is None
        else [
            [finite(logprob), token_id, token_string(data) if with_text else None]
            for token_id, data, logprob in token.top
        ]
        for token in tokens
    ]
