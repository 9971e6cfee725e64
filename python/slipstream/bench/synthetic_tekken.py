"""A tekken.json of any size: special tokens, the 256 bytes, and made-up words in place of a trained vocabulary.

Random tokens of a model without weights then go through a tokenizer as large as the real one.
"""

import base64
import itertools
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slipstream.errors import ConfigError
from slipstream.hf_transformers.embedded import embedded_path

NUM_BYTES = 256
_MAX_LETTERS = 4  # of a word: 26 ** 4 with and 26 ** 4 without a space before them, more than any vocabulary


def write_tekken(path: Path, vocab_size: int) -> None:
    """`vocab_size` ids: special tokens and format are those of the embedded model's file.

    Every word is a shorter one and a letter, so that merging reaches it. Raises ConfigError where not even the special
    tokens and the bytes fit.
    """
    tekken: dict[str, Any] = json.loads((embedded_path() / "tekken.json").read_text())
    num_special = len(tekken["special_tokens"])
    num_words = vocab_size - num_special - NUM_BYTES
    if num_words < 0:
        raise ConfigError(f"a vocabulary of {vocab_size} is too small: {num_special + NUM_BYTES} ids are taken already")
    pieces = tekken["vocab"][:NUM_BYTES]  # the single bytes, in order
    for rank, word in enumerate(itertools.islice(_words(), num_words), start=NUM_BYTES):
        pieces.append({"rank": rank, "token_bytes": base64.b64encode(word.encode()).decode(), "token_str": word})
    tekken["vocab"] = pieces
    tekken["config"] |= {"num_vocab_tokens": len(pieces), "default_vocab_size": num_special + len(pieces)}
    path.write_text(json.dumps(tekken), encoding="utf-8")


def _words() -> Iterator[str]:
    """Runs of letters, the shorter ones first: as the beginning of a word, with a space, and inside of one."""
    for length in range(1, _MAX_LETTERS + 1):
        runs = ["".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=length)]
        yield from (" " + run for run in runs)
        if length > 1:  # single letters are bytes
            yield from runs
