"""Ids to text, token by token: through the bytes of each token, or for other vocabularies by decoding with context."""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class PieceTable:
    """The bytes of every token, and how the family puts them together.

    `data[id]` is empty for ids without text. `leading_space` are the tokens that lose one leading space at the start of
    a text (the space which sentencepiece puts before every text). `replace_each_byte`: an invalid sequence of n bytes
    becomes n U+FFFD (sentencepiece) instead of one (the Unicode Standard, section 3.9, "maximal subpart").
    `joins_over_special`: bytes on both sides of a skipped special token may form one character.
    """

    data: Sequence[bytes]
    special: frozenset[int]
    leading_space: frozenset[int] = frozenset()
    replace_each_byte: bool = False
    joins_over_special: bool = False

    @cached_property
    def texts(self) -> list[str | None]:
        """The text of each token; None where its bytes alone are not whole characters."""
        return [_text_or_none(data) for data in self.data]


class PieceDetokenizer:
    """A Detokenizer over a PieceTable. About half a microsecond per token."""

    def __init__(self, table: PieceTable, *, skip_special_tokens: bool, continues: bool) -> None:
        self._data = table.data
        self._texts = table.texts
        self._table = table
        self._skipped = table.special if skip_special_tokens else frozenset()
        self._strips = bool(table.leading_space) and not continues
        self._buffer = b""

    @property
    def pending(self) -> bool:
        return bool(self._buffer)

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return "" if self._table.joins_over_special else self.flush()
        if token_id >= len(self._texts):  # a row that only pads the model's embedding
            return ""
        text = self._texts[token_id]
        if self._strips and self._data[token_id]:
            self._strips = False
            if token_id in self._table.leading_space and text is not None:
                return text[1:]
        if text is not None and not self._buffer:
            return text
        return self._decode(self._buffer + self._data[token_id], final=False)

    def flush(self) -> str:
        return self._decode(self._buffer, final=True) if self._buffer else ""

    def _decode(self, data: bytes, *, final: bool) -> str:
        """All whole characters of `data`; the beginning of another one stays in the buffer unless `final`."""
        parts: list[str] = []
        while True:
            try:
                text, num_used = codecs.utf_8_decode(data, "strict", final)
            except UnicodeDecodeError as error:
                num_bad = error.end - error.start
                parts.append(
                    data[: error.start].decode() + REPLACEMENT * (num_bad if self._table.replace_each_byte else 1)
                )
                data = data[error.end :]
            else:
                self._buffer = data[num_used:]
                return "".join([*parts, text])


class ContextDetokenizer:
    """A Detokenizer for vocabularies whose tokens have no bytes of their own (WordPiece and the like).

    A token's text is what the whole decode grows by when it is added after the few tokens before it. Two decodes of a
    few ids per token, so several times slower than a PieceDetokenizer.
    """

    def __init__(self, decode: Callable[[list[int]], str], context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(context)  # the context, then what has not been returned yet
        self._num_context = len(self._ids)
        self.pending = False

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        return self._advance(final=False)

    def flush(self) -> str:
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        before = self._decode(self._ids[: self._num_context])
        after = self._decode(self._ids)
        self.pending = len(after) > len(before) and after.endswith(REPLACEMENT) and not final
        if self.pending or len(after) <= len(before):
            return ""
        del self._ids[: self._num_context]
        self._num_context = len(self._ids)
        return after[len(before) :]


def _text_or_none(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None
