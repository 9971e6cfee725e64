"""Mistral Large 3 and Small 4: latent attention (MLA; DeepSeek-AI, 2024, section 2.1) and mixtures of experts."""

import torch
from torch import Tensor

from slipstream.attention.base import AttentionBackend, Rotation
from slipstream.layers.dense import LinearLayer
from slipstream.layers.fp8 import dequantize
from slipstream.layers.moe import MixtureOfExperts, Router
from slipstream.layers.normed import Normed, NormedPart
from slipstream.layers.rope import rotate
from slipstream.models.layer_parts import LayerParts
from slipstream.models.mistral import Config, Decoder, MistralForCausalLM, SelfAttention, kept
from slipstream.models.mistral4_tables import dense_layers


class LatentAttention:
    """Attention whose cache holds one vector per token for all heads: the normed latent c, then the rotated key part.

    A head's keys and values are linear in c: k = W_uk c and v = W_uv c, both parts of kv_b. So q . k = (W_uk^T q) . c,
    and a weighted sum of values is W_uv times that sum of c: keys and values of past tokens are never made. All rows
    go this way, those of a prompt too, so decoding and prefill compute the same.

    W_uk and W_uv therefore multiply something else than the checkpoint's kv_b does: an activation scale that belongs to
    kv_b has no place here, and FP8 weights of kv_b are kept in the model's dtype.
    The norms of the latents use the model's rms_norm_eps; transformers uses 1e-6, which is what the models have.
    """

    def __init__(self, config: Config, parts: LayerParts) -> None:
        self.index, self.norm = parts.index, parts.norm("attention_norm")
        self.nope_dim, self.rank = config["qk_nope_head_dim"], config["kv_lora_rank"]
        self.q_shape = (-1, config["num_attention_heads"], self.nope_dim + config["qk_rope_head_dim"])
        self.q_a: LinearLayer | None = None
        if config["q_lora_rank"] is None:
            self.q = parts.linear("q")
        else:
            self.q_a, self.q_a_norm = parts.linear("q_a"), parts.norm("q_a_norm")
            self.q = parts.linear("q_b")
        self.kv_a, self.kv_a_norm = parts.linear("kv_a"), parts.norm("kv_a_norm")
        kv_b = parts.parameters.matrix(parts.name("kv_b"))
        by_head = dequantize(kv_b).to(kv_b.dtype).view(self.q_shape[1], -1, self.rank)
        self.w_uk = by_head[:, : self.nope_dim].contiguous()  # [heads, nope, rank]
        self.w_uv = by_head[:, self.nope_dim :].transpose(1, 2).contiguous()  # [heads, rank, v]
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
        x, residual = self.norm.add(delta, residual)
        cos, sin, query_scale = rotation.cos, rotation.sin, rotation.query_scale
        q = self.q(x if self.q_a is None else self.q_a_norm(self.q_a(x))).view(self.q_shape)
        if query_scale is not None:
            q = (q * query_scale).to(q.dtype)
        q_latent = torch.bmm(q[..., : self.nope_dim].transpose(0, 1), self.w_uk).transpose(0, 1)
        q = torch.cat((q_latent, rotate(q[..., self.nope_dim :], cos, sin)), -1)
        k = self.kv_a(x).unsqueeze(1)
        k_rope = rotate(k[..., self.rank :], cos, sin)
        k = torch.cat((self.kv_a_norm(k[..., : self.rank]), k_rope), -1)
        attended = kept(attention.run(self.index, q, k, None).view(q_latent.shape), kept_rows)
        values = torch.bmm(attended.transpose(0, 1), self.w_uv).transpose(0, 1)
        return self.out(values.flatten(1)), kept(residual, kept_rows)


class LatentDecoder(Decoder):
    """With latent attention, and experts in all layers but the first few."""

    reads_on_host = True  # which experts have rows

    def rotary_dim(self, config: Config) -> int:
        return int(config["qk_rope_head_dim"])

    def make_attention(self, config: Config, parts: LayerParts) -> SelfAttention:
        return LatentAttention(config, parts)

    def make_mlp(self, config: Config, parts: LayerParts) -> NormedPart:
        if parts.index in dense_layers(config):
            return parts.normed_swiglu("mlp_norm")
        weight = parts.parameters.tensor(parts.name("router"))
        router = Router(weight, config["num_experts_per_tok"], config["routed_scaling_factor"])
        shared = parts.swiglu("shared_") if config["n_shared_experts"] else None
        experts = MixtureOfExperts(router, parts.experts(config["n_routed_experts"]), shared)
        return Normed(parts.norm("mlp_norm"), experts)


class Mistral4ForCausalLM(MistralForCausalLM):
    """See CausalLM."""

    decoder_class = LatentDecoder
