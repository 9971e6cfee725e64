"""Tekken: byte-level BPE with special tokens in front, as in tekken.json of Mistral checkpoints."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from slipstream.errors import CheckpointError, RequestError
from slipstream.tokenizer.detokenizer import PieceDetokenizer, PieceTable
from slipstream.tokenizer.mistral_chat import encode_chat, load_mistral


class TekkenTokenizer:
    """A TextTokenizer over tekken.json. Special tokens never come out of text: "[INST]" in a prompt is plain bytes."""

    def __init__(self, path: str) -> None:
        """Raises CheckpointError when mistral-common cannot read the file."""
        self._mistral = load_mistral(path)
        tekken = self._mistral.instruct_tokenizer.tokenizer
        if not isinstance(tekken, Tekkenizer):
            raise CheckpointError(path, ["this is a sentencepiece model, not a tekken.json"])
        self._tekken = tekken
        self._table = PieceTable(
            data=[tekken.id_to_byte_piece(i, SpecialTokenPolicy.KEEP) for i in range(tekken.n_words)],
            special=frozenset(range(tekken.num_special_tokens)),
        )

    @property
    def vocab_size(self) -> int:
        return self._tekken.n_words

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        return (self._tekken.eos_id,)

    def encode(self, text: str) -> list[int]:
        try:
            return self._tekken.encode(text, bos=True, eos=False)
        except ValueError as error:  # the splitting expression gives up on a run of about a million spaces
            raise RequestError(f"the text cannot be tokenised: {error}", param="prompt") from error

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return encode_chat(self._mistral, messages)

    def token_bytes(self, token_id: int) -> bytes:
        return self._table.data[token_id] if token_id < self.vocab_size else b""

    def is_special(self, token_id: int) -> bool:
        return token_id in self._table.special

    def detokenizer(self, *, skip_special_tokens: bool = True, context: Sequence[int] = ()) -> PieceDetokenizer:
        return PieceDetokenizer(self._table, skip_special_tokens=skip_special_tokens, continues=bool(context))
