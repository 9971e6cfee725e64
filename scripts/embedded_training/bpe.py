"""The byte-level BPE and its `tekken.json`: trained with the `tokenizers` library, written in Mistral's format."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import tiktoken
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from embedded_training.tokens import NAMED_SPECIALS, NUM_SPECIAL

VERSION = "v15"
VOCAB_SIZE = 3072

# The split pattern of Mistral's own tekken files: words by case change, single digits, symbols, line ends, spaces.
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

MODEL_SETTINGS_BUILDER = {
    "reasoning_effort": {"type": "enum", "accepts_none": True, "default": "none", "values": ["none", "high"]},
    "json_schema": {"type": "json_schema", "accepts_none": False},
}


def train_ranks(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> list[bytes]:
    """Token bytes in rank order, `vocab_size - NUM_SPECIAL` of them: the 256 single bytes, then one per merge."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - NUM_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    ranks = [bytes([b]) for b in range(256)]
    known = set(ranks)
    for merge in merges:
        token = b"".join(_bytes_of(part) for part in merge)
        if token not in known:
            known.add(token)
            ranks.append(token)
    if len(ranks) != vocab_size - NUM_SPECIAL:
        raise ValueError(f"the text gives {len(ranks)} tokens, {vocab_size - NUM_SPECIAL} are needed")
    return ranks


def _bytes_of(token: str) -> bytes:
    return bytes(_BYTE_OF_CHARACTER[c] for c in token)


def _byte_characters() -> Iterator[tuple[str, int]]:
    """The printable stand-ins that byte-level BPE uses: each visible Latin-1 byte itself, the others from U+0100 on."""
    shifted = 0
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
            yield chr(byte), byte
        else:
            yield chr(256 + shifted), byte
            shifted += 1


_BYTE_OF_CHARACTER = dict(_byte_characters())


def tekken_document(ranks: list[bytes]) -> dict[str, object]:
    """The content of `tekken.json` for these token bytes: special ids first, token ids shifted by NUM_SPECIAL."""
    return {
        "config": {
            "pattern": PATTERN,
            "num_vocab_tokens": len(ranks),
            "default_vocab_size": len(ranks) + NUM_SPECIAL,
            "default_num_special_tokens": NUM_SPECIAL,
            "version": VERSION,
        },
        "vocab": [_vocab_entry(rank, token) for rank, token in enumerate(ranks)],
        "special_tokens": [
            {"rank": i, "token_str": NAMED_SPECIALS.get(i, f"<SPECIAL_{i}>"), "is_control": True}
            for i in range(NUM_SPECIAL)
        ],
        "model_settings_builder": MODEL_SETTINGS_BUILDER,
    }


def _vocab_entry(rank: int, token: bytes) -> dict[str, object]:
    try:
        text: str | None = token.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    return {"rank": rank, "token_bytes": base64.b64encode(token).decode("ascii"), "token_str": text}


class TextEncoder:
    """Text to ids and back by a `tekken.json`; special tokens are never read from text."""

    def __init__(self, path: Path) -> None:
        document = json.loads(path.read_text(encoding="utf-8"))
        tokens = [base64.b64decode(entry["token_bytes"]) for entry in document["vocab"]]
        self._offset = int(document["config"]["default_num_special_tokens"])
        self._bpe = tiktoken.Encoding(
            name="tekken",
            pat_str=document["config"]["pattern"],
            mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
            special_tokens={},
        )

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, no begin or end token."""
        return [i + self._offset for i in self._bpe.encode_ordinary(text)]

    def encode_many(self, texts: list[str], threads: int = 4) -> list[list[int]]:
        """`encode` for each text, on several threads."""
        return [[i + self._offset for i in ids] for ids in self._bpe.encode_ordinary_batch(texts, num_threads=threads)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special ids left out."""
        return self._bpe.decode([i - self._offset for i in ids if i >= self._offset])


def dead_tokens(ranks: list[bytes]) -> list[bytes]:
    """Tokens that no text can give: those that encoding their own bytes by merges does not yield."""
    rank_of = {token: rank for rank, token in enumerate(ranks)}
    return [token for token in ranks[256:] if _merge(token, rank_of) != [token]]


def _merge(text: bytes, rank_of: dict[bytes, int]) -> list[bytes]:
    parts = [text[i : i + 1] for i in range(len(text))]
    while len(parts) > 1:
        pairs = [(rank_of.get(a + b, len(rank_of)), i) for i, (a, b) in enumerate(pairwise(parts))]
        rank, i = min(pairs)
        if rank == len(rank_of):
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts
