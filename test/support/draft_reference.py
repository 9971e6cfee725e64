"""Mistral's EAGLE draft by its formulas, in float64, from params.json and the tensors as they are stored.

Written without the package, and each part in another form than there: complex numbers rotate neighbouring pairs, keys
and values of latent attention are made for every head, one row at a time goes through its experts.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from support.fp8 import E4M3, round_activations


@dataclass(frozen=True)
class DraftReference:
    """A draft, whole or without one of its parts."""

    params: dict[str, Any]
    tensors: dict[str, Tensor]
    final_norm: bool = True
    first_attention_norm: bool = True
    yarn_factor: bool = True
    query_scale: bool = True
    hidden_first: bool = False  # the fusion's two inputs in the other order
    rounds_activations: bool = True  # of FP8 matrices

    @staticmethod
    def read(folder: Path, **changes: bool) -> "DraftReference":
        params = json.loads((folder / "params.json").read_text())
        return DraftReference(params, load_file(folder / "consolidated.safetensors"), **changes)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Embeddings and hidden states [T, D] of one request at positions 0 to T - 1 -> float64 [T, D]."""
        pair = (hidden, x) if self.hidden_first else (x, hidden)
        x = self.linear("eagle_linear", torch.cat([part.double() for part in pair], 1))
        for index in range(self.params["n_layers"]):
            layer = f"layers.{index}."
            skips_norm = index == 0 and not self.first_attention_norm
            normed = x if skips_norm else self.norm(f"{layer}attention_norm", x)
            is_latent = self.params.get("kv_lora_rank") is not None
            attend = self.latent_attention if is_latent else self.grouped_attention
            x = x + attend(f"{layer}attention.", normed)
            x = x + self.feed_forward(layer, self.norm(f"{layer}ffn_norm", x))
        return self.norm("norm", x) if self.final_norm else x

    def linear(self, name: str, x: Tensor) -> Tensor:
        """The stored matrix, in FP8 with its scale and a rounded input."""
        weight, scale = self.weight(name), self.tensors.get(f"{name}.qscale_act")
        if scale is not None and self.rounds_activations:
            x = round_activations(x, scale)
        return x @ weight.T

    def weight(self, name: str) -> Tensor:
        stored = self.tensors[f"{name}.weight"]
        wide = stored.double()
        return wide * self.tensors[f"{name}.qscale_weight"].double() if stored.dtype == E4M3 else wide

    def norm(self, name: str, x: Tensor) -> Tensor:
        mean_square = (x * x).mean(-1, keepdim=True)
        return x / torch.sqrt(mean_square + self.params["norm_eps"]) * self.tensors[f"{name}.weight"].double()

    def grouped_attention(self, name: str, x: Tensor) -> Tensor:
        """Query head h reads key head h // (heads / key heads). YaRN's factor multiplies queries and keys."""
        heads, kv_heads, size = (self.params[key] for key in ("n_heads", "n_kv_heads", "head_dim"))
        q, k, v = (self.linear(name + part, x).view(len(x), -1, size) for part in ("wq", "wk", "wv"))
        q, k = self.rotate(q) * self.magnitude() * self.query_scales(len(x)), self.rotate(k) * self.magnitude()
        k, v = (part.repeat_interleave(heads // kv_heads, 1) for part in (k, v))
        return self.linear(f"{name}wo", attend(q, k, v, size**-0.5, self.params.get("sliding_window")))

    def latent_attention(self, name: str, x: Tensor) -> Tensor:
        """Keys and values of every head from the latent. YaRN's factor, squared, multiplies the scores."""
        heads, rank, nope, rope = (
            self.params[key] for key in ("n_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim")
        )
        if self.params["q_lora_rank"] is None:
            q = self.linear(f"{name}wq", x)
        else:
            q = self.linear(f"{name}wq_b", self.norm(f"{name}q_a_norm", self.linear(f"{name}wq_a", x)))
        q = q.view(len(x), heads, nope + rope)
        q = torch.cat((q[..., :nope], self.rotate(q[..., nope:])), -1) * self.query_scales(len(x))
        latent = self.linear(f"{name}wkv_a_with_mqa", x)
        shared = self.rotate(latent[:, None, rank:]).expand(-1, heads, -1)
        # the package absorbs this matrix into queries and outputs: FP8 weights, but no input that could be rounded
        kv = self.norm(f"{name}kv_a_norm", latent[:, :rank]) @ self.weight(f"{name}wkv_b").T
        kv = kv.view(len(x), heads, -1)
        k = torch.cat((kv[..., :nope], shared), -1)
        scale = (nope + rope) ** -0.5 * self.magnitude() ** 2
        return self.linear(f"{name}wo", attend(q, k, kv[..., nope:], scale))

    def rotate(self, x: Tensor) -> Tensor:
        """[T, heads, size] at positions 0 to T - 1: pair i, values 2 i and 2 i + 1, is a complex number."""
        positions = torch.arange(len(x), dtype=torch.float64)
        angles = positions[:, None, None] * self.frequencies(x.shape[-1])
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(2)

    def frequencies(self, size: int) -> Tensor:
        """YaRN: a pair that turns more than `beta` times over the original context keeps its frequency, one that turns
        less than `alpha` times has it divided; between, by where its number lies (bounds rounded outwards).
        """
        theta, yarn = self.params["rope_theta"], self.params.get("yarn")
        plain = [theta ** (-2 * pair / size) for pair in range(size // 2)]
        if yarn is None:
            return torch.tensor(plain, dtype=torch.float64)
        original, factor = yarn["original_max_position_embeddings"], yarn["factor"]

        def pair_that_turns(times: float) -> float:
            return math.log(original / (2 * math.pi * times)) / math.log(theta) * size / 2

        low = max(math.floor(pair_that_turns(yarn["beta"])), 0)
        high = min(math.ceil(pair_that_turns(yarn["alpha"])), size - 1)
        kept = [1 - min(max((pair - low) / (high - low), 0.0), 1.0) for pair in range(size // 2)]
        blended = [f * part + f / factor * (1 - part) for f, part in zip(plain, kept, strict=True)]
        return torch.tensor(blended, dtype=torch.float64)

    def magnitude(self) -> float:
        """YaRN's factor of queries and of keys."""
        yarn = self.params.get("yarn")
        applies = yarn is not None and yarn.get("apply_scale", True) and self.yarn_factor
        return 0.1 * math.log(yarn["factor"]) + 1 if applies and yarn else 1.0

    def query_scales(self, num_rows: int) -> Tensor:
        """[T, 1, 1] of llama_4_scaling."""
        scaling = self.params.get("llama_4_scaling")
        if scaling is None or not self.query_scale:
            return torch.ones(num_rows, 1, 1, dtype=torch.float64)
        original = scaling["original_max_position_embeddings"]
        scales = [1 + scaling["beta"] * math.log(1 + position // original) for position in range(num_rows)]
        return torch.tensor(scales, dtype=torch.float64).view(-1, 1, 1)

    def feed_forward(self, layer: str, x: Tensor) -> Tensor:
        if f"{layer}gate.weight" not in self.tensors:
            return self.swiglu(f"{layer}feed_forward.", x)
        moe = self.params["moe"]
        rows = []
        for row, scores in zip(x.split(1), (x @ self.weight(f"{layer}gate").T).softmax(-1), strict=True):
            weights, chosen = scores.topk(moe["num_experts_per_tok"])
            weights = weights / weights.sum() * moe["routed_scale"]
            parts = [self.swiglu(f"{layer}experts.{expert}.", row) for expert in chosen.tolist()]
            rows.append(
                sum((part * weight for part, weight in zip(parts, weights, strict=True)), torch.zeros_like(row))
            )
        routed = torch.cat(rows)
        return routed + self.swiglu(f"{layer}shared_experts.", x) if moe["num_shared_experts"] else routed

    def swiglu(self, name: str, x: Tensor) -> Tensor:
        gate = self.linear(f"{name}w1", x)
        return self.linear(f"{name}w2", gate * torch.sigmoid(gate) * self.linear(f"{name}w3", x))


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None = None) -> Tensor:
    """[T, heads, size], every row over those up to its own -> [T, heads * value size]."""
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    distance = torch.arange(len(q))[:, None] - torch.arange(len(q))
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -math.inf).softmax(-1), v).flatten(1)
