"""SentencePiece models of the older Mistral checkpoints: tokenizer.model, tokenizer.model.v3 and so on."""

from collections.abc import Mapping, Sequence
from typing import Any

from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer as MistralSentencePiece
from sentencepiece import SentencePieceProcessor

from slipstream.errors import CheckpointError
from slipstream.tokenizer.detokenizer import PieceDetokenizer, PieceTable
from slipstream.tokenizer.mistral_chat import encode_chat, load_mistral

SPACE = "\u2581"  # how pieces write a space
UNKNOWN_TEXT = " \u2047 "  # what sentencepiece decodes the unknown token to


class SentencePieceTokenizer:
    """A TextTokenizer over a sentencepiece model with byte fallback."""

    def __init__(self, path: str) -> None:
        """Raises CheckpointError when mistral-common cannot read the file."""
        self._mistral = load_mistral(path)
        model = self._mistral.instruct_tokenizer.tokenizer
        if not isinstance(model, MistralSentencePiece):
            raise CheckpointError(path, ["this is a tekken.json, not a sentencepiece model"])
        self._model = model
        self._table = piece_table(SentencePieceProcessor(model_file=path))

    @property
    def vocab_size(self) -> int:
        return self._model.n_words

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return (self._model.eos_id,)

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text, bos=True, eos=False)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return encode_chat(self._mistral, messages)

    def token_bytes(self, token_id: int) -> bytes:
        return self._table.data[token_id] if token_id < self.vocab_size else b""

    def is_special(self, token_id: int) -> bool:
        return token_id in self._table.special

    def detokenizer(self, *, skip_special_tokens: bool = True, context: Sequence[int] = ()) -> PieceDetokenizer:
        return PieceDetokenizer(self._table, skip_special_tokens=skip_special_tokens, continues=bool(context))


def piece_table(model: SentencePieceProcessor) -> PieceTable:
    """The bytes of every piece, as sentencepiece's own decode writes them."""
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    return PieceTable(
        data=[_piece_bytes(model, i, piece) for i, piece in enumerate(pieces)],
        special=frozenset(i for i in range(len(pieces)) if model.is_control(i)),
        leading_space=frozenset(i for i, piece in enumerate(pieces) if piece.startswith(SPACE)),
        replace_each_byte=True,
    )


def _piece_bytes(model: SentencePieceProcessor, token_id: int, piece: str) -> bytes:
    if model.is_byte(token_id):
        return bytes([int(piece[1:-1], 16)])  # "<0xE2>"
    if model.is_unknown(token_id):
        return UNKNOWN_TEXT.encode()
    return piece.replace(SPACE, " ").encode()
