"""A tiny random GQA target of one layer, a draft that is right often, and a tokenizer of 320 ids, for an Engine."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slipstream.hf_transformers.embedded import embedded_path
from support.checkpoints import reference_model, write_native
from support.draft_checkpoints import write_copying_draft

NUM_BYTES, NUM_SPECIAL = 256, 64
VOCAB_SIZE = NUM_BYTES + NUM_SPECIAL


@dataclass(frozen=True)
class TinyPair:
    """Folders of both, and the target in transformers."""

    target: str
    draft: str
    reference: Any

    @torch.inference_mode()
    def logits_after(self, token_ids: list[int]) -> list[float]:
        """The target's logits for the token after these, by transformers."""
        logits: list[float] = self.reference(torch.tensor([token_ids])).logits[0, -1].tolist()
        return logits


def write_tiny_pair(folder: Path, *, noise: float = 0.02) -> TinyPair:
    """`noise` is that of write_copying_draft()."""
    shape: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "n_layers": 1}
    reference = reference_model(**shape)
    target = write_native(folder / "target", reference, **shape)
    write_byte_tokenizer(target / "tekken.json")
    draft = write_copying_draft(folder / "draft", target, noise=noise)
    return TinyPair(str(target), str(draft), reference)


def write_byte_tokenizer(file: Path) -> None:
    """The embedded model's tokenizer with its special tokens and the 256 single bytes alone."""
    tekken = json.loads((embedded_path() / "tekken.json").read_text())
    tekken["vocab"] = tekken["vocab"][:NUM_BYTES]
    assert len(tekken["special_tokens"]) == NUM_SPECIAL
    tekken["config"] |= {"num_vocab_tokens": NUM_BYTES, "default_vocab_size": VOCAB_SIZE}
    file.write_text(json.dumps(tekken))
