"""Which bytes each token of a tokenizer.json stands for, where its decoder works piece by piece."""

import re
from collections.abc import Callable
from typing import Any

import tokenizers

from slipstream.tokenizer.detokenizer import PieceTable

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def piece_table(
    tokenizer: tokenizers.Tokenizer,
    decoder: dict[str, Any] | None,
    special: frozenset[int],
    size: int,
) -> PieceTable | None:
    """The PieceTable that does what `decoder` (tokenizer.json's description) does; None when no table can.

    Tables exist for byte-level decoders and for those in sentencepiece's manner: spaces written as another character,
    byte tokens, one leading space removed.
    """
    steps = _steps(decoder)
    kinds = [step["type"] for step in steps]
    to_bytes: Callable[[str], bytes]
    if kinds == ["ByteLevel"]:
        to_bytes, strips, per_byte = _byte_level, False, False
    elif kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"} and _all_simple(steps):
        to_bytes = _piecewise(steps)
        strips = any(step["type"] == "Strip" or _strips_metaspace(step) for step in steps)
        per_byte = True
    else:
        return None
    tokens = [tokenizer.id_to_token(i) for i in range(size)]
    data = [b"" if token is None else to_bytes(token) for token in tokens]
    leading = frozenset(i for i, piece in enumerate(data) if piece.startswith(b" ")) if strips else frozenset[int]()
    return PieceTable(data, special, leading, replace_each_byte=per_byte, joins_over_special=True)


def _steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The decoder as a list of single steps."""
    if decoder is None:
        return []
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _all_simple(steps: list[dict[str, Any]]) -> bool:
    """Whether each step changes a token by itself, apart from one space at the very beginning."""
    for step in steps:
        if step["type"] == "Replace" and "String" not in step["pattern"]:
            return False
        if step["type"] == "Strip" and (step["content"], step["start"], step["stop"]) != (" ", 1, 0):
            return False
    return True


def _strips_metaspace(step: dict[str, Any]) -> bool:
    return bool(step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")


def _piecewise(steps: list[dict[str, Any]]) -> Callable[[str], bytes]:
    has_byte_tokens = any(step["type"] == "ByteFallback" for step in steps)
    replacements = [(step["pattern"]["String"], step["content"]) for step in steps if step["type"] == "Replace"]
    replacements += [(step["replacement"], " ") for step in steps if step["type"] == "Metaspace"]

    def to_bytes(token: str) -> bytes:
        byte = BYTE_TOKEN.fullmatch(token) if has_byte_tokens else None
        if byte:
            return bytes([int(byte[1], 16)])
        for old, new in replacements:
            token = token.replace(old, new)
        return token.encode()

    return to_bytes


def _byte_level(token: str) -> bytes:
    """A token's characters each stand for one byte; a token with any other character is ordinary text."""
    values = [BYTE_OF_CHARACTER.get(character) for character in token]
    return bytes([value for value in values if value is not None]) if None not in values else token.encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the other 68 are shifted to 256 and up, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + i): byte for i, byte in enumerate(others)}}


BYTE_OF_CHARACTER = _byte_alphabet()
