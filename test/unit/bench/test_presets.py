"""Presets as the launcher sees them: the right model, the right draft, a tokenizer of the right size."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from slipstream.bench.presets import PRESETS, Preset, write_preset
from slipstream.bench.synthetic_tekken import write_tekken
from slipstream.errors import ConfigError
from slipstream.hf_transformers.inspect import inspect_checkpoint, inspect_draft
from slipstream.launch.pair import pair_problems, pair_warnings
from slipstream.tokenizer.tekken import TekkenTokenizer

TINY: dict[str, Any] = {
    "dim": 64, "n_layers": 2, "head_dim": 16, "hidden_dim": 96, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5,
    "rope_theta": 1e6, "vocab_size": 1000, "max_position_embeddings": 256,
}  # fmt: skip
# layers, hidden size, query heads, KV heads, feed-forward, vocabulary: targets.md's geometries
SIZES = {
    "7b": (32, 4096, 32, 8, 14336, 32768),
    "24b": (40, 5120, 32, 8, 32768, 131072),
    "128b-fp8": (88, 12288, 96, 8, 28672, 131072),
}
KEYS = (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size",
)  # fmt: skip


@pytest.mark.parametrize("name", list(PRESETS))
def test_checkpoints_of_a_preset(name: str, tmp_path: Path) -> None:
    folders = write_preset(PRESETS[name], tmp_path, name)
    target = inspect_checkpoint(str(folders.target), "dummy")
    draft = inspect_draft(str(folders.draft), "dummy")
    assert tuple(target.config[key] for key in KEYS) == SIZES[name] and target.config["head_dim"] == 128
    assert target.name == name and target.dtype == "bfloat16" and not target.warnings
    assert tuple(draft.config[key] for key in KEYS[1:]) == SIZES[name][1:]
    assert draft.config["num_hidden_layers"] == (2 if name.startswith("128b") else 1)
    assert (target.quantization is not None) == (draft.quantization is not None) == (name == "128b-fp8")
    assert draft.kind == "mistral_eagle" and pair_problems(target, draft) == pair_warnings(target, draft) == []
    assert target.context_length >= 8193
    size = json.loads((folders.target / "tekken.json").read_text())["config"]["default_vocab_size"]
    assert size == SIZES[name][-1]


def test_every_id_of_the_tokenizer_is_a_text_of_its_own(tmp_path: Path) -> None:
    folders = write_preset(Preset(TINY, 1), tmp_path, "tiny")
    tokenizer = TekkenTokenizer(str(folders.target / "tekken.json"))
    assert tokenizer.vocab_size == 1000 and tokenizer.eos_token_ids == (2,)
    pieces = [tokenizer.token_bytes(token_id) for token_id in range(1000) if not tokenizer.is_special(token_id)]
    assert len(set(pieces)) == len(pieces) == 1000 - 64 and all(pieces)
    assert max(map(len, pieces)) > 1  # no bytes alone
    text = "ab zq the cat"
    [_, *token_ids] = tokenizer.encode(text)
    assert b"".join(map(tokenizer.token_bytes, token_ids)).decode() == text


def test_words_are_reached_by_merging(tmp_path: Path) -> None:
    """A word alone is one token, by mistral-common's own tokenizer."""
    write_tekken(tmp_path / "tekken.json", 20_000)
    tekken = Tekkenizer.from_file(tmp_path / "tekken.json")
    assert tekken.n_words == 20_000
    for token_id in range(64 + 256, 20_000, 97):
        assert tekken.encode(tekken.decode([token_id]), bos=False, eos=False) == [token_id]


def test_the_largest_vocabulary_is_written_quickly(tmp_path: Path) -> None:
    started_s = time.process_time()
    write_tekken(tmp_path / "tekken.json", 131_072)
    assert time.process_time() - started_s < 2.0


def test_a_vocabulary_without_room_for_bytes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a vocabulary of 300 is too small: 320"):
        write_tekken(tmp_path / "tekken.json", 300)
