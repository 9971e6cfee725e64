"""The dense decoder of Mistral and Llama: grouped-query attention, rotary positions, SwiGLU, pre-norm.

With YaRN, position-dependent query scaling and sliding windows where the configuration has them.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from slipstream.attention.base import AttentionBackend
from slipstream.layers.embedding import Embedding, Head
from slipstream.layers.feed_forward import FeedForward
from slipstream.layers.norm import RMSNorm
from slipstream.layers.query_scale import make_query_scale
from slipstream.layers.rope import RotaryEmbedding, rotate
from slipstream.models.base import ImageEncoder, ImageRows
from slipstream.models.layer_parts import LayerParts
from slipstream.weights.parameters import Parameters

Config = Mapping[str, Any]


class SelfAttention(Protocol):
    """The attention part of one layer: grouped-query here, latent elsewhere."""

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, query_scale: Tensor | None, attention: AttentionBackend
    ) -> Tensor:
        """Normed rows [T, D] -> [T, D]. `cos` and `sin` are RotaryEmbedding.at() of the rows' positions."""
        ...


class GroupedQueryAttention:
    """See SelfAttention."""

    def __init__(self, config: Config, parts: LayerParts) -> None:
        self.index = parts.index
        self.num_heads, self.num_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.num_rotated = self.num_heads + self.num_kv_heads
        self.qkv_shape = (-1, self.num_rotated + self.num_kv_heads, config["head_dim"])
        self.qkv, self.out = parts.linear("qkv"), parts.linear("attention_out")

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, query_scale: Tensor | None, attention: AttentionBackend
    ) -> Tensor:
        qkv = self.qkv(x).view(self.qkv_shape)
        rotated = rotate(qkv[:, : self.num_rotated], cos, sin)
        q, k = rotated[:, : self.num_heads], rotated[:, self.num_heads :]
        if query_scale is not None:
            q = (q * query_scale).to(x.dtype)
        return self.out(attention.run(self.index, q, k, qkv[:, self.num_rotated :]))


class Block:
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, parts: LayerParts, self_attention: SelfAttention, mlp: FeedForward) -> None:
        self.attention_norm, self.mlp_norm = parts.norm("attention_norm"), parts.norm("mlp_norm")
        self.self_attention = self_attention
        self.mlp = mlp

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, query_scale: Tensor | None, attention: AttentionBackend
    ) -> Tensor:
        """[T, D] -> [T, D]."""
        x = x + self.self_attention.forward(self.attention_norm(x), cos, sin, query_scale, attention)
        return x + self.mlp(self.mlp_norm(x))


class Decoder:
    """All layers and the final norm, between embedding and head: what a target and its draft have in common.

    `prefix` begins the names of its parameters.
    """

    def __init__(self, config: Config, parameters: Parameters, device: torch.device, prefix: str = "") -> None:
        self.rope = RotaryEmbedding(
            self.rotary_dim(config), config["rope_parameters"], config["attention_factor"], device
        )
        self.query_scale = make_query_scale(config["rope_parameters"])
        eps, layer = config["rms_norm_eps"], f"{prefix}layers."
        layers = [LayerParts(parameters, index, eps, layer) for index in range(config["num_hidden_layers"])]
        self.blocks = [
            Block(parts, self.make_attention(config, parts), self.make_mlp(config, parts)) for parts in layers
        ]
        self.norm = RMSNorm(parameters.tensor(f"{prefix}norm"), eps)

    def rotary_dim(self, config: Config) -> int:
        """How many values of a head are rotated."""
        return int(config["head_dim"])

    def make_attention(self, config: Config, parts: LayerParts) -> SelfAttention:
        """Of one layer; another family's may differ, as may its feed-forward part."""
        return GroupedQueryAttention(config, parts)

    def make_mlp(self, config: Config, parts: LayerParts) -> FeedForward:
        return parts.swiglu()

    def forward(self, x: Tensor, positions: Tensor, attention: AttentionBackend) -> Tensor:
        """See CausalLM.forward."""
        cos, sin = self.rope.at(positions)
        query_scale = None if self.query_scale is None else self.query_scale.at(positions)
        for block in self.blocks:
            x = block.forward(x, cos, sin, query_scale, attention)
        return self.norm(x)


class MistralForCausalLM:
    """See CausalLM."""

    image_encoder: ImageEncoder | None = None
    decoder_class: type[Decoder] = Decoder

    def __init__(self, config: Config, parameters: Parameters, device: torch.device) -> None:
        self.embedding = Embedding(parameters.tensor("embedding"))
        self.decoder = self.decoder_class(config, parameters, device)
        self.head = Head(self.embedding.weight if config["tie_word_embeddings"] else parameters.tensor("head"))

    def embed(self, token_ids: Tensor, images: ImageRows | None = None) -> Tensor:
        x = self.embedding(token_ids)
        return x if images is None else images.put_into(x)

    def forward(self, x: Tensor, positions: Tensor, attention: AttentionBackend) -> Tensor:
        return self.decoder.forward(x, positions, attention)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)
