"""The dense decoder of Mistral and Llama: grouped-query attention, rotary positions, SwiGLU, pre-norm."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slipstream.attention.base import AttentionBackend, AttentionLayer
from slipstream.layers.embedding import Embedding, Head
from slipstream.layers.linear import make_linear
from slipstream.layers.norm import RMSNorm
from slipstream.layers.rope import RotaryEmbedding
from slipstream.weights.name_map import NameMap, ParameterShape, Rule, expand_layers

Config = Mapping[str, Any]


class Block:
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Config, parameters: dict[str, Tensor], index: int, rope: RotaryEmbedding) -> None:
        def weight(name: str) -> Tensor:
            return parameters.pop(f"layers.{index}.{name}")

        eps = config["rms_norm_eps"]
        self.index = index
        self.rope = rope
        self.num_heads, self.num_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.num_rotated = self.num_heads + self.num_kv_heads
        self.qkv_shape = (-1, self.num_rotated + self.num_kv_heads, config["head_dim"])
        self.attention_norm, self.mlp_norm = RMSNorm(weight("attention_norm"), eps), RMSNorm(weight("mlp_norm"), eps)
        self.qkv, self.out = make_linear(weight("qkv")), make_linear(weight("attention_out"))
        self.gate_up, self.down = make_linear(weight("gate_up")), make_linear(weight("down"))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attention: AttentionBackend) -> Tensor:
        """[T, D] -> [T, D]."""
        qkv = self.qkv(self.attention_norm(x)).view(self.qkv_shape)
        rotated = self.rope.rotate(qkv[:, : self.num_rotated], cos, sin)
        x = x + self.out(
            attention.run(
                self.index, rotated[:, : self.num_heads], rotated[:, self.num_heads :], qkv[:, self.num_rotated :]
            )
        )
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate).mul_(up))


class MistralForCausalLM:
    """See CausalLM."""

    def __init__(self, config: Config, parameters: dict[str, Tensor], num_positions: int, device: torch.device) -> None:
        self.rope = RotaryEmbedding(config["head_dim"], config["rope_parameters"]["rope_theta"], num_positions, device)
        self.embedding = Embedding(parameters.pop("embedding"))
        self.blocks = [Block(config, parameters, index, self.rope) for index in range(config["num_hidden_layers"])]
        self.norm = RMSNorm(parameters.pop("norm"), config["rms_norm_eps"])
        self.head = Head(self.embedding.weight if config["tie_word_embeddings"] else parameters.pop("head"))

    def forward(self, token_ids: Tensor, positions: Tensor, attention: AttentionBackend) -> Tensor:
        x = self.embedding(token_ids)
        cos, sin = self.rope.at(positions)
        for block in self.blocks:
            x = block.forward(x, cos, sin, attention)
        return self.norm(x)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    @classmethod
    def attention_layers(cls, config: Config) -> tuple[AttentionLayer, ...]:
        layer = AttentionLayer(
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["head_dim"],
            scale=config["head_dim"] ** -0.5,
        )
        return tuple(layer for _ in range(config["num_hidden_layers"]))

    @classmethod
    def parameter_shapes(cls, config: Config) -> dict[str, ParameterShape]:
        dim, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
        q_rows = config["num_attention_heads"] * config["head_dim"]
        kv_rows = config["num_key_value_heads"] * config["head_dim"]
        shapes = {
            "embedding": ParameterShape((vocab, dim)),
            "layers.{layer}.attention_norm": ParameterShape((dim,), init="ones"),
            "layers.{layer}.qkv": ParameterShape(
                (q_rows + 2 * kv_rows, dim), parts=(("q", q_rows), ("k", kv_rows), ("v", kv_rows))
            ),
            "layers.{layer}.attention_out": ParameterShape((dim, q_rows)),
            "layers.{layer}.mlp_norm": ParameterShape((dim,), init="ones"),
            "layers.{layer}.gate_up": ParameterShape((2 * inner, dim), parts=(("gate", inner), ("up", inner))),
            "layers.{layer}.down": ParameterShape((dim, inner)),
            "norm": ParameterShape((dim,), init="ones"),
        }
        if not config["tie_word_embeddings"]:
            shapes["head"] = ParameterShape((vocab, dim))
        return expand_layers(shapes, config["num_hidden_layers"])

    @classmethod
    def name_map(cls, config: Config, layout: str) -> NameMap:
        return _native_names(config) if layout == "mistral" else _hf_names(config)


def _native_names(config: Config) -> NameMap:
    layer, head_dim = "layers.{layer}.", config["head_dim"]
    head = () if config["tie_word_embeddings"] else (Rule("output.weight", "head"),)
    return NameMap(
        (
            Rule("tok_embeddings.weight", "embedding"),
            # Native files pair neighbouring rows for rotation; see interleaved_to_half().
            Rule(layer + "attention.wq.weight", layer + "qkv", "q", "interleaved_to_half", head_dim),
            Rule(layer + "attention.wk.weight", layer + "qkv", "k", "interleaved_to_half", head_dim),
            Rule(layer + "attention.wv.weight", layer + "qkv", "v"),
            Rule(layer + "attention.wo.weight", layer + "attention_out"),
            Rule(layer + "attention_norm.weight", layer + "attention_norm"),
            Rule(layer + "feed_forward.w1.weight", layer + "gate_up", "gate"),
            Rule(layer + "feed_forward.w3.weight", layer + "gate_up", "up"),
            Rule(layer + "feed_forward.w2.weight", layer + "down"),
            Rule(layer + "ffn_norm.weight", layer + "mlp_norm"),
            Rule("norm.weight", "norm"),
            *head,
        )
    )


def _hf_names(config: Config) -> NameMap:
    layer, own = "model.layers.{layer}.", "layers.{layer}."
    tied = config["tie_word_embeddings"]
    return NameMap(
        (
            Rule("model.embed_tokens.weight", "embedding"),
            Rule(layer + "self_attn.q_proj.weight", own + "qkv", "q"),
            Rule(layer + "self_attn.k_proj.weight", own + "qkv", "k"),
            Rule(layer + "self_attn.v_proj.weight", own + "qkv", "v"),
            Rule(layer + "self_attn.o_proj.weight", own + "attention_out"),
            Rule(layer + "input_layernorm.weight", own + "attention_norm"),
            Rule(layer + "mlp.gate_proj.weight", own + "gate_up", "gate"),
            Rule(layer + "mlp.up_proj.weight", own + "gate_up", "up"),
            Rule(layer + "mlp.down_proj.weight", own + "down"),
            Rule(layer + "post_attention_layernorm.weight", own + "mlp_norm"),
            Rule("model.norm.weight", "norm"),
            *(() if tied else (Rule("lm_head.weight", "head"),)),
            # old files store the rotation frequencies, which the configuration gives, and tied heads twice
        ),
        ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", *(("lm_head\\.weight",) if tied else ())),
    )
