"""The model in plain torch: the Mistral-native dense architecture, with one stacked tensor for each kind of weight.

Stacked weights ([n_layers, out, in]) make the optimizer's matrix work one batched product and let every layer share
one compiled function. Names and shapes of the checkpoint's own tensors appear only in `native_tensors` / `load_native`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

LAYER_TENSORS = {
    "attention_norm": "attention_norm.weight",
    "wq": "attention.wq.weight",
    "wk": "attention.wk.weight",
    "wv": "attention.wv.weight",
    "wo": "attention.wo.weight",
    "ffn_norm": "ffn_norm.weight",
    "w1": "feed_forward.w1.weight",
    "w2": "feed_forward.w2.weight",
    "w3": "feed_forward.w3.weight",
}


@dataclass(frozen=True)
class Shape:
    """The fields of `params.json`."""

    dim: int
    n_layers: int
    head_dim: int
    hidden_dim: int
    n_heads: int
    n_kv_heads: int
    norm_eps: float
    vocab_size: int
    rope_theta: float
    tied_embeddings: bool
    max_position_embeddings: int

    @property
    def num_parameters(self) -> int:
        attention = 2 * self.dim * self.head_dim * (self.n_heads + self.n_kv_heads)
        layer = attention + 3 * self.dim * self.hidden_dim + 2 * self.dim
        return self.n_layers * layer + self.vocab_size * self.dim + self.dim


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the last dimension, computed in fp32, returned in x's dtype."""
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates interleaved pairs (2i, 2i+1) of x [B, T, heads, head_dim]; cos and sin are fp32 [T, 1, head_dim / 2]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


def apply_layer(x: Tensor, weights: dict[str, Tensor], cos: Tensor, sin: Tensor, head_dim: int, eps: float) -> Tensor:
    """One transformer layer on the residual stream x [B, T, dim], causal over each row."""
    h = rms_norm(x, weights["attention_norm"], eps)
    q, k, v = (F.linear(h, weights[name]).unflatten(-1, (-1, head_dim)) for name in ("wq", "wk", "wv"))
    q, k = rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    x = x + F.linear(attended.transpose(1, 2).flatten(-2), weights["wo"])
    h = rms_norm(x, weights["ffn_norm"], eps)
    return x + F.linear(F.silu(F.linear(h, weights["w1"])) * F.linear(h, weights["w3"]), weights["w2"])


def token_losses(x: Tensor, norm: Tensor, embeddings: Tensor, targets: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(sum of -ln p(target), sum of squared log normalisers), both fp32, over targets >= 0. targets [B, T]."""
    logits = F.linear(rms_norm(x, norm, eps), embeddings).float()
    normalisers = torch.logsumexp(logits, dim=-1)
    chosen = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    counted = (targets >= 0).float()
    return ((normalisers - chosen) * counted).sum(), (normalisers.square() * counted).sum()


class EmbeddedModel(nn.Module):
    """fp32 master weights; every forward computes in `compute_dtype`, residual stream included, as it is served."""

    def __init__(self, shape: Shape, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.shape = shape
        self.compute_dtype = compute_dtype
        self._apply_layer: Callable[..., Tensor] = apply_layer
        self._token_losses: Callable[..., tuple[Tensor, Tensor]] = token_losses
        layers, dim, hidden = shape.n_layers, shape.dim, shape.hidden_dim
        q_dim, kv_dim = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
        out_scale = (2 * layers) ** -0.5
        self.tok_embeddings = nn.Parameter(0.02 * torch.randn(shape.vocab_size, dim))
        self.norm = nn.Parameter(torch.ones(dim))
        self.attention_norm = nn.Parameter(torch.ones(layers, dim))
        self.ffn_norm = nn.Parameter(torch.ones(layers, dim))
        self.wq = random_matrices(layers, q_dim, dim)
        self.wk = random_matrices(layers, kv_dim, dim)
        self.wv = random_matrices(layers, kv_dim, dim)
        self.wo = random_matrices(layers, dim, q_dim, out_scale)
        self.w1 = random_matrices(layers, hidden, dim)
        self.w2 = random_matrices(layers, dim, hidden, out_scale)
        self.w3 = random_matrices(layers, hidden, dim)
        cos, sin = rope_tables(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def compile(self) -> None:
        """Compiles the layer and the loss: two functions for all layers, so compiling takes seconds."""
        self._apply_layer = torch.compile(apply_layer, dynamic=False)
        self._token_losses = torch.compile(token_losses, dynamic=False)

    def matrices(self) -> list[nn.Parameter]:
        """The stacked weight matrices of the layers, [n_layers, out, in] each."""
        return [self.wq, self.wk, self.wv, self.wo, self.w1, self.w2, self.w3]

    def forward(self, tokens: Tensor) -> Tensor:
        """Residual stream after the last layer, before the final norm: [B, T] ids -> [B, T, dim] in compute_dtype."""
        stacks = {name: getattr(self, name).to(self.compute_dtype).unbind(0) for name in LAYER_TENSORS}
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        x = F.embedding(tokens, self.tok_embeddings.to(self.compute_dtype))
        for i in range(self.shape.n_layers):
            weights = {name: stack[i] for name, stack in stacks.items()}
            x = self._apply_layer(x, weights, cos, sin, self.shape.head_dim, self.shape.norm_eps)
        return x

    def losses(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """`token_losses` of a batch: tokens and targets [B, T], targets of -1 do not count."""
        norm, embeddings = self.norm.to(self.compute_dtype), self.tok_embeddings.to(self.compute_dtype)
        return self._token_losses(self(tokens), norm, embeddings, targets, self.shape.norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Residual rows [..., dim] -> logits [..., vocab_size] in fp32."""
        normed = rms_norm(hidden, self.norm.to(self.compute_dtype), self.shape.norm_eps)
        return F.linear(normed, self.tok_embeddings.to(self.compute_dtype)).float()


def random_matrices(layers: int, rows: int, columns: int, scale: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(layers, rows, columns) * scale * columns**-0.5)


def rope_tables(shape: Shape) -> tuple[Tensor, Tensor]:
    """cos and sin, fp32 [max_position_embeddings, 1, head_dim / 2]."""
    frequencies = shape.rope_theta ** -(torch.arange(0, shape.head_dim, 2).double() / shape.head_dim)
    angles = torch.arange(shape.max_position_embeddings).double()[:, None, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def native_tensors(model: EmbeddedModel) -> dict[str, Tensor]:
    """The checkpoint's tensors in bf16 under Mistral's native names."""
    tensors = {"tok_embeddings.weight": model.tok_embeddings, "norm.weight": model.norm}
    for name, native in LAYER_TENSORS.items():
        for i, weight in enumerate(getattr(model, name)):
            tensors[f"layers.{i}.{native}"] = weight
    return {name: t.detach().to(torch.bfloat16).cpu().contiguous() for name, t in tensors.items()}


def save_native(model: EmbeddedModel, folder: Path) -> None:
    """Writes params.json and consolidated.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(asdict(model.shape), indent=2) + "\n", encoding="utf-8")
    save_file(native_tensors(model), folder / "consolidated.safetensors", metadata={"format": "pt"})


def load_native(folder: Path, compute_dtype: torch.dtype, device: str = "cpu") -> EmbeddedModel:
    """The model of a native checkpoint folder, its bf16 weights held in fp32."""
    shape = Shape(**json.loads((folder / "params.json").read_text(encoding="utf-8")))
    tensors = load_file(folder / "consolidated.safetensors")
    model = EmbeddedModel(shape, compute_dtype)
    with torch.no_grad():
        model.tok_embeddings.copy_(tensors["tok_embeddings.weight"])
        model.norm.copy_(tensors["norm.weight"])
        for name, native in LAYER_TENSORS.items():
            getattr(model, name).copy_(torch.stack([tensors[f"layers.{i}.{native}"] for i in range(shape.n_layers)]))
    return model.to(device)
