"""What a draft's params.json says, from its target's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.hf_transformers.params_json import adapt_params
from slipstream.layers.query_scale import make_query_scale
from slipstream.layers.rope import RotaryEmbedding

# what a draft has of its target; windows, experts, quantisation and a vision encoder are the target's alone
_INHERITED = (
    "dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "norm_eps", "vocab_size", "rope_theta",
    "yarn", "llama_4_scaling", "tied_embeddings", "max_position_embeddings", "max_seq_len", "model_max_length",
)  # fmt: skip


@dataclass(frozen=True)
class DraftSizes:
    """The keys of params.json that shape a draft's weights."""

    dim: int
    n_layers: int
    head_dim: int
    hidden_dim: int
    n_heads: int
    n_kv_heads: int
    norm_eps: float

    @staticmethod
    def of(params: Mapping[str, Any]) -> DraftSizes:
        return DraftSizes(**{field.name: params[field.name] for field in fields(DraftSizes)})


def draft_params(target: Mapping[str, Any], n_layers: int, hidden_dim: int) -> dict[str, Any]:
    """params.json of a draft with its own number of layers and width of the feed-forward part."""
    own = {key: target[key] for key in _INHERITED if target.get(key) is not None}
    return own | {"n_layers": n_layers, "hidden_dim": hidden_dim}


class Rotation:
    """How the draft's queries and keys are turned, by the layers that serve it."""

    def __init__(self, params: Mapping[str, Any], device: torch.device | str) -> None:
        """Raises ConfigError with all that is wrong with params.json."""
        problems: list[str] = []
        config = adapt_params(params, problems, role="draft", special_id=lambda name: None).config
        if problems:
            raise ConfigError("; ".join(problems))
        rope = config["rope_parameters"]
        self._half = config["head_dim"] // 2
        self._rope = RotaryEmbedding(config["head_dim"], rope, config["attention_factor"], torch.device(device))
        self._query_scale = make_query_scale(rope)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """cos and sin, fp32 [T, 1, head_dim / 2], of positions int64 [T], and what multiplies queries, [T, 1, 1].

        Both halves of the served tables are of the same pairs, but for the first half's sign of sines.
        """
        cos, sin = self._rope.at(positions)
        scale = None if self._query_scale is None else self._query_scale.at(positions)
        return cos[..., self._half :], sin[..., self._half :], scale
