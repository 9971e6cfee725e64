"""Special token ids, and token arrays in files: what the training machine shares with the tokenizer's."""

from __future__ import annotations

import io
import lzma
from pathlib import Path

import numpy as np

# Ids of the special tokens of the tekken family; every id below NUM_SPECIAL that has no name here is a filler.
NUM_SPECIAL = 64
NAMED_SPECIALS = {
    0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]", 6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]", 10: "[IMG]", 11: "<pad>", 12: "[IMG_BREAK]",
    13: "[IMG_END]", 14: "[PREFIX]", 15: "[MIDDLE]", 16: "[SUFFIX]", 17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]", 24: "[AUDIO]", 25: "[BEGIN_AUDIO]", 32: "[ARGS]", 33: "[CALL_ID]", 34: "[THINK]",
    35: "[/THINK]", 36: "[MODEL_SETTINGS]", 37: "[/MODEL_SETTINGS]",
}  # fmt: skip
BOS, EOS, INST, END_INST, PAD = 1, 2, 3, 4, 11
SYSTEM, END_SYSTEM, SETTINGS, END_SETTINGS = 17, 18, 36, 37

TARGET_FLAG = 0x8000  # set in a stored uint16 token: the model is trained to predict it
TOKEN_MASK = TARGET_FLAG - 1


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes an xz-compressed .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    path.write_bytes(lzma.compress(buffer.getvalue(), preset=9))


def load_array(path: Path) -> np.ndarray:
    """Reads what `save_array` wrote."""
    array: np.ndarray = np.load(io.BytesIO(lzma.decompress(path.read_bytes())))
    return array
