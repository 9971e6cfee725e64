"""A Mistral GQA EAGLE draft in plain torch, and its unrolled forward for training.

Row t joins the embedding of token t + 1 and the target's hidden state of row t, taken after the target's final norm.
What comes out after the draft's own final norm is read by the target's head as a guess of token t + 2, and takes the
place of the target's hidden state when the draft goes on alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from embedded_training.draft_params import DraftSizes, Rotation
from embedded_training.model import LAYER_TENSORS, random_matrices, rms_norm, rotate_pairs

_KEY_ALIGNMENT = 8  # attention scores get a multiple of this many columns, which matrix products of bf16 like

Weights = dict[str, Tensor]
Turns = tuple[Tensor, Tensor, Tensor | None]  # see Rotation.at


def project(x: Tensor, weights: Weights, turns: Turns, head_dim: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Residual rows [N, dim] -> rotated and scaled queries, rotated keys, values: [N, heads, head_dim] each."""
    cos, sin, query_scale = turns
    h = rms_norm(x, weights["attention_norm"], eps)
    q, k, v = (F.linear(h, weights[name]).unflatten(-1, (-1, head_dim)) for name in ("wq", "wk", "wv"))
    q = rotate_pairs(q, cos, sin)
    if query_scale is not None:
        q = (q * query_scale).to(q.dtype)
    return q, rotate_pairs(k, cos, sin), v


def finish(x: Tensor, attended: Tensor, weights: Weights, eps: float) -> Tensor:
    """What follows the attention of a layer: residual rows [N, dim], attended [N, heads * head_dim]."""
    x = x + F.linear(attended, weights["wo"])
    h = rms_norm(x, weights["ffn_norm"], eps)
    return x + F.linear(F.silu(F.linear(h, weights["w1"])) * F.linear(h, weights["w3"]), weights["w2"])


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [B, T, heads, head_dim], k and v [B, T, kv_heads, head_dim] -> [B, T, heads, head_dim]."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def unrolled_attention(
    q: Tensor, k: Tensor, v: Tensor, own_keys: list[Tensor], own_values: list[Tensor], future: Tensor
) -> Tensor:
    """Attention of the rows that the draft makes alone: one softmax over the target's rows and its own.

    Everything is indexed by anchor a, the last row that had the target's hidden state. Row a of unrolled step s stands
    at position a + s and sees rows 0..a of step 0 (k, v [B, T, kv_heads, head_dim]) and row a of the steps 1..s
    (`own_keys`, `own_values`: one [B, T, kv_heads, head_dim] for each). `future` [T, T] is True where a column is
    later than its row. q and the result: [B, T, heads, head_dim].
    """
    batch, length, kv_heads, head_dim = k.shape
    groups = q.shape[2] // kv_heads
    # [B * kv_heads, groups * T, head_dim]: the queries of one group of heads stand below one another
    rows = q.unflatten(2, (kv_heads, groups)).permute(0, 2, 3, 1, 4).reshape(batch * kv_heads, -1, head_dim)
    keys, values = (t.transpose(1, 2).reshape(batch * kv_heads, length, head_dim) for t in (k, v))
    scores = (rows * head_dim**-0.5) @ keys.mT
    scores = scores.view(-1, groups, length, length).masked_fill(future, float("-inf"))
    by_group = rows.view(batch * kv_heads, groups, length, head_dim)
    own = [t.transpose(1, 2).reshape(batch * kv_heads, 1, length, head_dim) for t in (*own_keys, *own_values)]
    own_k, own_v = own[: len(own_keys)], own[len(own_keys) :]
    diagonal = torch.stack([(by_group * key).sum(-1) * head_dim**-0.5 for key in own_k], dim=-1)
    padding = -(length + len(own_k)) % _KEY_ALIGNMENT
    chances = torch.cat([scores, F.pad(diagonal, (0, padding), value=float("-inf"))], dim=-1).softmax(-1)
    flat = chances.view(batch * kv_heads, groups * length, -1)
    out = (flat[..., :length] @ values).view(by_group.shape)
    for i, value in enumerate(own_v):
        out = out + chances[..., length + i, None] * value
    return out.view(batch, kv_heads * groups, length, head_dim).transpose(1, 2)


def distances(
    x: Tensor, norm: Tensor, head: Tensor, expected: Tensor, hidden: Tensor, weights: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, cross-entropy, smooth L1) of residual rows x [N, dim]; the two losses are weighted sums in fp32.

    `expected` [N, dim], fp32, is the mean of the head's rows under the distribution p that is to be met, which makes
    the cross-entropy -sum p log q = logsumexp(head out) - expected . out. `hidden` [N, dim] is what out stands for.
    """
    out = rms_norm(x, norm, eps)
    normalisers = torch.logsumexp(F.linear(out, head).float(), dim=-1)
    cross_entropy = normalisers - (expected * out.float()).sum(-1)
    gaps = F.smooth_l1_loss(out.float(), hidden.float(), reduction="none").mean(-1)
    return out, (cross_entropy * weights).sum(), (gaps * weights).sum()


class DraftModel(nn.Module):
    """fp32 master weights; every forward computes in `compute_dtype`. Embeddings and head are the target's.

    `params` is the content of the draft's params.json.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        compute_dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.params = dict(params)
        self.sizes = sizes = DraftSizes.of(params)
        self.compute_dtype = compute_dtype
        self._rotation = Rotation(params, device)
        self._project: Callable[..., tuple[Tensor, Tensor, Tensor]] = project
        self._finish: Callable[..., Tensor] = finish
        self._distances: Callable[..., tuple[Tensor, Tensor, Tensor]] = distances
        layers, dim, hidden = sizes.n_layers, sizes.dim, sizes.hidden_dim
        q_dim, kv_dim = sizes.n_heads * sizes.head_dim, sizes.n_kv_heads * sizes.head_dim
        out_scale = (2 * layers) ** -0.5
        self.eagle_linear = random_matrices(1, dim, 2 * dim)
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
        self.to(device)

    def compile(self) -> None:
        """Compiles what works on rows; batches of one number of rows, whatever their lengths, share the result."""
        self._project = torch.compile(project, dynamic=False)
        self._finish = torch.compile(finish, dynamic=False)
        self._distances = torch.compile(distances, dynamic=False)

    def matrices(self) -> list[nn.Parameter]:
        """The stacked weight matrices, [n, out, in] each."""
        return [self.eagle_linear, self.wq, self.wk, self.wv, self.wo, self.w1, self.w2, self.w3]

    def vectors(self) -> list[nn.Parameter]:
        """The weights of the norms."""
        return [self.norm, self.attention_norm, self.ffn_norm]

    def forward(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        """All rows given: embeddings of the tokens one later and hidden states, [B, T, dim] -> out [B, T, dim]."""
        x = self._fused(embeddings, hidden)
        turns = self._rotations(x, 0)
        for weights in self._layers():
            q, k, v = self._heads(x, weights, turns)
            x = self._finished(x, causal_attention(q, k, v), weights)
        return rms_norm(x, self.norm.to(self.compute_dtype), self.sizes.norm_eps)

    def unrolled(
        self,
        embeddings: Tensor,
        hidden: Tensor,
        head: Tensor,
        expected: Tensor,
        weights: Tensor,
        steps: int,
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Outs of every step [B, T, dim], indexed by anchor, and both losses of every step, weighted sums [steps].

        embeddings [B, T, dim]: of each row's own token; hidden [B, T, dim]: the target's; expected [B, T, dim] and
        weights [B, T]: see `distances`, of the target's own row. Anchor a of step s reads token a + s + 1 and is held
        against row a + s + 1; anchors for which there is no such row do not count.
        """
        norm = self.norm.to(self.compute_dtype)
        layers = list(self._layers())
        first: list[tuple[Tensor, Tensor]] = []
        own: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in layers]
        length = embeddings.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=embeddings.device).triu(1)
        feedback, outs, entropies, gaps = hidden, [], [], []
        for step in range(steps):
            x = self._fused(_earlier(embeddings, step + 1), feedback)
            turns = self._rotations(x, step)
            for i, layer in enumerate(layers):
                q, k, v = self._heads(x, layer, turns)
                if step == 0:
                    first.append((k, v))
                    attended = causal_attention(q, k, v)
                else:
                    own[i][0].append(k)
                    own[i][1].append(v)
                    attended = unrolled_attention(q, *first[i], *own[i], future)
                x = self._finished(x, attended, layer)
            counted = _earlier(weights, step + 1).clone()
            counted[:, length - step - 1 :] = 0
            rows = (_earlier(t, step + 1).flatten(0, 1) for t in (expected, hidden))
            eps = self.sizes.norm_eps
            out, entropy, gap = self._distances(x.flatten(0, 1), norm, head, *rows, counted.flatten(), eps)
            feedback = out.view(x.shape)
            outs.append(feedback)
            entropies.append(entropy)
            gaps.append(gap)
        return outs, torch.stack(entropies), torch.stack(gaps)

    def _layers(self) -> list[Weights]:
        stacks = {name: getattr(self, name).to(self.compute_dtype).unbind(0) for name in LAYER_TENSORS}
        return [{name: stack[i] for name, stack in stacks.items()} for i in range(self.sizes.n_layers)]

    def _fused(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        return F.linear(torch.cat([embeddings, hidden], dim=-1), self.eagle_linear[0].to(self.compute_dtype))

    def _rotations(self, x: Tensor, offset: int) -> Turns:
        """Of rows at positions offset.. of each sequence, B * T in all."""
        return self._rotation.at(torch.arange(offset, offset + x.shape[1], device=x.device).repeat(x.shape[0]))

    def _heads(self, x: Tensor, weights: Weights, turns: Turns) -> tuple[Tensor, Tensor, Tensor]:
        sizes = self.sizes
        projected = self._project(x.flatten(0, 1), weights, turns, sizes.head_dim, sizes.norm_eps)
        q, k, v = (t.unflatten(0, x.shape[:2]) for t in projected)
        return q, k, v

    def _finished(self, x: Tensor, attended: Tensor, weights: Weights) -> Tensor:
        rows = self._finish(x.flatten(0, 1), attended.flatten(-2).flatten(0, 1), weights, self.sizes.norm_eps)
        return rows.view(x.shape)


def _earlier(rows: Tensor, count: int) -> Tensor:
    """Rows [B, T, ...] moved `count` places to the front; what wraps around to the end is not to be used."""
    return torch.roll(rows, -count, dims=1)


def draft_tensors(model: DraftModel) -> dict[str, Tensor]:
    """The checkpoint's tensors in bf16 under Mistral's native names."""
    tensors = {"eagle_linear.weight": model.eagle_linear[0], "norm.weight": model.norm}
    for name, native in LAYER_TENSORS.items():
        for i, weight in enumerate(getattr(model, name)):
            tensors[f"layers.{i}.{native}"] = weight
    return {name: t.detach().to(torch.bfloat16).cpu().contiguous() for name, t in tensors.items()}


def save_draft(model: DraftModel, folder: Path) -> None:
    """Writes params.json and consolidated.safetensors, both as readable as the umask lets new files be."""
    folder.mkdir(parents=True, exist_ok=True)
    params, weights = folder / "params.json", folder / "consolidated.safetensors"
    params.write_text(json.dumps(model.params, indent=2) + "\n", encoding="utf-8")
    save_file(draft_tensors(model), weights, metadata={"format": "pt"})
    weights.chmod(params.stat().st_mode & 0o777)  # safetensors lets the owner alone read it


def load_draft(folder: Path, compute_dtype: torch.dtype, device: str = "cpu") -> DraftModel:
    """The draft of a folder that `save_draft` wrote, its bf16 weights held in fp32."""
    params = json.loads((folder / "params.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "consolidated.safetensors")
    model = DraftModel(params, compute_dtype, device)
    with torch.no_grad():
        model.eagle_linear.copy_(tensors["eagle_linear.weight"][None])
        model.norm.copy_(tensors["norm.weight"])
        for name, native in LAYER_TENSORS.items():
            stored = [tensors[f"layers.{i}.{native}"] for i in range(model.sizes.n_layers)]
            getattr(model, name).copy_(torch.stack(stored))
    return model
