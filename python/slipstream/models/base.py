"""What the worker asks of a model."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from slipstream.attention.base import AttentionBackend, AttentionLayer
from slipstream.weights.name_map import NameMap, ParameterShape


class CausalLM(Protocol):
    """A decoder that predicts the next token. `config` is ModelSpec.config."""

    def __init__(
        self, config: Mapping[str, Any], parameters: dict[str, Tensor], num_positions: int, device: torch.device
    ) -> None:
        """`parameters` are those of parameter_shapes(); they are taken out of it one by one, so that a layer that
        packs its weight never keeps two copies. Positions lie below `num_positions`.
        """

    @classmethod
    def parameter_shapes(cls, config: Mapping[str, Any]) -> dict[str, ParameterShape]: ...

    @classmethod
    def name_map(cls, config: Mapping[str, Any], layout: str) -> NameMap: ...

    @classmethod
    def attention_layers(cls, config: Mapping[str, Any]) -> tuple[AttentionLayer, ...]: ...

    def forward(self, token_ids: Tensor, positions: Tensor, attention: AttentionBackend) -> Tensor:
        """int64 [T] and [T] -> the hidden states [T, D] after the final norm. `attention` is planned for these rows."""
        ...

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[rows, D] -> fp32 [rows, vocab]."""
        ...
