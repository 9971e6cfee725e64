"""The dense decoder of Mistral and Llama: grouped-query attention, rotary positions, SwiGLU, pre-norm.

With YaRN, position-dependent query scaling and sliding windows where the configuration has them.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from slipstream.attention.base import AttentionBackend, Rotation
from slipstream.layers.embedding import Embedding, Head
from slipstream.layers.norm import RMSNorm
from slipstream.layers.normed import NormedPart
from slipstream.layers.query_scale import make_query_scale
from slipstream.layers.rope import RotaryEmbedding
from slipstream.models.base import ImageEncoder, ImageRows
from slipstream.models.layer_parts import LayerParts
from slipstream.weights.parameters import Parameters

Config = Mapping[str, Any]


class SelfAttention(Protocol):
    """The attention part of one layer with its norm: grouped-query here, latent elsewhere."""

    def forward(
        self,
        delta: Tensor | None,
        residual: Tensor,
        rotation: Rotation,
        attention: AttentionBackend,
        kept_rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See NormedPart; `rotation` is that of the rows' positions. Both results are of `kept_rows` only, int64 [N],
        where they are given: the others attend, and leave their keys and values in the cache, but go no further.
        """
        ...


class GroupedQueryAttention:
    """See SelfAttention."""

    def __init__(self, config: Config, parts: LayerParts) -> None:
        self.index = parts.index
        num_heads = config["num_attention_heads"] + 2 * config["num_key_value_heads"]
        self.qkv_shape = (-1, num_heads, config["head_dim"])
        self.qkv = parts.normed_linear("attention_norm", "qkv")
        self.out = parts.linear("attention_out")

    def forward(
        self,
        delta: Tensor | None,
        residual: Tensor,
        rotation: Rotation,
        attention: AttentionBackend,
        kept_rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See SelfAttention."""
        qkv, residual = self.qkv(delta, residual)
        attended = attention.run_fused(self.index, qkv.view(self.qkv_shape), rotation)
        return self.out(kept(attended, kept_rows)), kept(residual, kept_rows)


class Block:
    """x + attention(norm(x)), then x + mlp(norm(x)), where x = residual + delta; the last sum is left to whoever is
    next.
    """

    def __init__(self, self_attention: SelfAttention, mlp: NormedPart) -> None:
        self.self_attention = self_attention
        self.mlp = mlp

    def forward(
        self,
        delta: Tensor | None,
        residual: Tensor,
        rotation: Rotation,
        attention: AttentionBackend,
        kept_rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See SelfAttention."""
        delta, residual = self.self_attention.forward(delta, residual, rotation, attention, kept_rows)
        return self.mlp(delta, residual)


class Decoder:
    """All layers and the final norm, between embedding and head: what a target and its draft have in common.

    `prefix` begins the names of its parameters.
    """

    reads_on_host = False  # see CausalLM

    def __init__(self, config: Config, parameters: Parameters, device: torch.device, prefix: str = "") -> None:
        self.rope = RotaryEmbedding(
            self.rotary_dim(config), config["rope_parameters"], config["attention_factor"], device
        )
        self.query_scale = make_query_scale(config["rope_parameters"])
        eps, layer = config["rms_norm_eps"], f"{prefix}layers."
        layers = [LayerParts(parameters, index, eps, layer) for index in range(config["num_hidden_layers"])]
        self.blocks = [Block(self.make_attention(config, parts), self.make_mlp(config, parts)) for parts in layers]
        self.norm = RMSNorm(parameters.tensor(f"{prefix}norm"), eps)

    def rotary_dim(self, config: Config) -> int:
        """How many values of a head are rotated."""
        return int(config["head_dim"])

    def make_attention(self, config: Config, parts: LayerParts) -> SelfAttention:
        """Of one layer; another family's may differ, as may its feed-forward part."""
        return GroupedQueryAttention(config, parts)

    def make_mlp(self, config: Config, parts: LayerParts) -> NormedPart:
        return parts.normed_swiglu("mlp_norm")

    def forward(
        self, x: Tensor, positions: Tensor, attention: AttentionBackend, kept_rows: Tensor | None = None
    ) -> Tensor:
        """See CausalLM.forward."""
        query_scale = None if self.query_scale is None else self.query_scale.at(positions)
        rotation = Rotation(*self.rope.at(positions), query_scale)
        delta: Tensor | None = None
        for block in self.blocks[:-1]:
            delta, x = block.forward(delta, x, rotation, attention)
        delta, x = self.blocks[-1].forward(delta, x, rotation, attention, kept_rows)
        return self.norm.add(delta, x)[0]


def kept(rows: Tensor, kept_rows: Tensor | None) -> Tensor:
    """Of [T, ...] the rows `kept_rows`, int64 [N], if there are any named."""
    return rows if kept_rows is None else rows.index_select(0, kept_rows)


class MistralForCausalLM:
    """See CausalLM."""

    image_encoder: ImageEncoder | None = None
    decoder_class: type[Decoder] = Decoder

    def __init__(self, config: Config, parameters: Parameters, device: torch.device) -> None:
        self.reads_on_host = self.decoder_class.reads_on_host
        self.embedding = Embedding(parameters.tensor("embedding"))
        self.decoder = self.decoder_class(config, parameters, device)
        self.head = Head(self.embedding.weight if config["tie_word_embeddings"] else parameters.tensor("head"))

    def embed(self, token_ids: Tensor, images: ImageRows | None = None) -> Tensor:
        x = self.embedding(token_ids)
        return x if images is None else images.put_into(x)

    def forward(
        self, x: Tensor, positions: Tensor, attention: AttentionBackend, kept_rows: Tensor | None = None
    ) -> Tensor:
        return self.decoder.forward(x, positions, attention, kept_rows)

    def compute_logits(self, hidden: Tensor, *, widen: bool = True) -> Tensor:
        return self.head(hidden, widen=widen)
