"""Sizes of models to measure without a download: a preset becomes folders with params.json and random weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipstream.bench.synthetic_tekken import write_tekken

_STATIC_FP8 = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}


@dataclass(frozen=True)
class Preset:
    """`params` is the target's params.json; its draft is an EAGLE draft with the same trunk and `draft_layers`."""

    params: Mapping[str, Any]
    draft_layers: int

    @property
    def draft_params(self) -> dict[str, Any]:
        return {**self.params, "n_layers": self.draft_layers}


@dataclass(frozen=True)
class PresetFolders:
    """Where the checkpoints of a preset lie."""

    target: Path
    draft: Path


PRESETS: Mapping[str, Preset] = {
    # the shape of Mistral 7B
    "7b": Preset(
        {
            "dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
            "norm_eps": 1e-5, "rope_theta": 1e6, "vocab_size": 32768, "max_position_embeddings": 32768,
        },
        draft_layers=1,
    ),
    # of Mistral Small 3
    "24b": Preset(
        {
            "dim": 5120, "n_layers": 40, "head_dim": 128, "hidden_dim": 32768, "n_heads": 32, "n_kv_heads": 8,
            "norm_eps": 1e-5, "rope_theta": 1e9, "vocab_size": 131072, "max_position_embeddings": 131072,
        },
        draft_layers=1,
    ),
    # the language model of Mistral Medium 3.5, whose own draft has two layers
    "128b-fp8": Preset(
        {
            "dim": 12288, "n_layers": 88, "head_dim": 128, "hidden_dim": 28672, "n_heads": 96, "n_kv_heads": 8,
            "norm_eps": 1e-5, "rope_theta": 1e6, "vocab_size": 131072, "max_position_embeddings": 262144,
            "yarn": {
                "factor": 64, "original_max_position_embeddings": 4096, "beta": 4, "alpha": 1, "apply_scale": True,
            },
            "quantization": _STATIC_FP8,
        },
        draft_layers=2,
    ),
}  # fmt: skip


def write_preset(preset: Preset, folder: Path, name: str) -> PresetFolders:
    """Write both checkpoints of a preset below `folder`: configurations and the target's tokenizer, no weights.

    They are loaded with --load-format dummy. The target's folder is called `name`, as the model then is.
    """
    folders = PresetFolders(folder / name, folder / f"{name}-draft")
    for path, params in ((folders.target, preset.params), (folders.draft, preset.draft_params)):
        path.mkdir()
        (path / "params.json").write_text(json.dumps(params, indent=2) + "\n")
    write_tekken(folders.target / "tekken.json", preset.params["vocab_size"])
    return folders
