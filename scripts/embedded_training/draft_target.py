"""What the trainer of a draft needs of the target."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from embedded_training.model import LAYER_TENSORS, EmbeddedModel, Shape, load_native, rms_norm, rotate_pairs
from slipstream.errors import ConfigError

# every decode step has a new length: kernels that are planned for one length would plan at every step
_ANY_LENGTH = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Target(Protocol):
    """A target held still: its embeddings and head, its hidden states, and its own continuations."""

    params: dict[str, Any]  # the content of params.json
    embeddings: Tensor  # [vocab_size, dim], in the dtype that the target computes in
    head: Tensor  # [vocab_size, dim], likewise
    capturable: bool  # whether a CUDA graph can hold what `hidden` does

    def hidden(self, tokens: Tensor) -> Tensor:
        """Ids [B, T] -> hidden states after the final norm [B, T, dim]."""

    def continue_rows(self, tokens: Tensor, starts: Tensor, temperatures: Tensor, deadline: float = math.inf) -> Tensor:
        """Ids [B, T] with everything from column starts[b] of row b on replaced by the target's own continuation.

        The token in column t is drawn at temperatures[b, t], 0 for the likeliest one. No token ends a continuation.
        At `deadline` on time.perf_counter()'s clock it stops and gives the columns that are done.
        """


# ids [B, n] at positions from the one given on, n > 1 only at 0 -> hidden states after the final norm [B, n, dim]
Forward = Callable[[Tensor, int], Tensor]


@torch.no_grad()
def continued(
    forward: Forward, head: Tensor, tokens: Tensor, starts: Tensor, temperatures: Tensor, deadline: float
) -> Tensor:
    """See Target.continue_rows. All rows go forward together, those still in their prompts under its tokens."""
    rows, length = tokens.clone(), tokens.shape[1]
    first = int(starts.min())
    if time.perf_counter() >= deadline:
        return rows[:, :first]
    with sdpa_kernel(_ANY_LENGTH):
        hidden = forward(rows[:, :first], 0)
        for t in range(first, length):
            logits = F.linear(hidden[:, -1], head).float()
            # Gumbel noise: argmax(logits / T + noise) is a draw at temperature T
            noise = torch.empty_like(logits).exponential_().clamp_(min=1e-30).log().neg()
            chosen = torch.addcmul(logits, noise, temperatures[:, t, None]).argmax(-1)
            rows[:, t] = torch.where(t < starts, rows[:, t], chosen)
            if time.perf_counter() >= deadline:
                return rows[:, : t + 1]
            if t + 1 < length:
                hidden = forward(rows[:, t : t + 1], t)
    return rows


class EmbeddedTarget:
    """The embedded model, or another of that form, computed in the trainer's own code, which can be compiled."""

    capturable = True

    def __init__(self, folder: Path, compute_dtype: torch.dtype, device: str) -> None:
        """Raises ConfigError where the checkpoint is of another form."""
        self.params = json.loads((folder / "params.json").read_text(encoding="utf-8"))
        if self.params.keys() != {field.name for field in fields(Shape)} or not self.params["tied_embeddings"]:
            raise ConfigError(f"{folder} is not of the embedded model's form; give --text in the place of --corpus")
        self._model = load_native(folder, compute_dtype, device).requires_grad_(False)
        self._norm = self._model.norm.to(compute_dtype)
        self.embeddings = self._model.tok_embeddings.to(compute_dtype)
        self.head = self.embeddings

    def compile(self) -> None:
        self._model.compile()

    @torch.no_grad()
    def hidden(self, tokens: Tensor) -> Tensor:
        """See Target."""
        return self._normed(self._model(tokens))

    def continue_rows(self, tokens: Tensor, starts: Tensor, temperatures: Tensor, deadline: float = math.inf) -> Tensor:
        """See Target."""
        decoder = _CachedDecoder(self._model, *tokens.shape)

        def forward(ids: Tensor, start: int) -> Tensor:
            return self._normed(decoder(ids, start))

        return continued(forward, self.head, tokens, starts, temperatures, deadline)

    def _normed(self, rows: Tensor) -> Tensor:
        return rms_norm(rows, self._norm, self._model.shape.norm_eps)


class _CachedDecoder:
    """Forward passes that append to one key and value cache, all rows of the batch at one position."""

    def __init__(self, model: EmbeddedModel, batch: int, length: int) -> None:
        shape, dtype, device = model.shape, model.compute_dtype, model.tok_embeddings.device
        stacks = {name: getattr(model, name).to(dtype).unbind(0) for name in LAYER_TENSORS}
        self._layers = [{name: stack[i] for name, stack in stacks.items()} for i in range(shape.n_layers)]
        self._model = model
        self._embeddings = model.tok_embeddings.to(dtype)
        size = (shape.n_layers, batch, shape.n_kv_heads, length, shape.head_dim)
        self._keys, self._values = (torch.empty(size, dtype=dtype, device=device) for _ in range(2))

    def __call__(self, tokens: Tensor, start: int) -> Tensor:
        """Ids [B, n] at positions start.., n > 1 only at 0 -> residual stream before the final norm [B, n, dim]."""
        shape, end = self._model.shape, start + tokens.shape[1]
        cos, sin = self._model.cos[start:end], self._model.sin[start:end]
        x = F.embedding(tokens, self._embeddings)
        for weights, keys, values in zip(self._layers, self._keys, self._values, strict=True):
            h = rms_norm(x, weights["attention_norm"], shape.norm_eps)
            q, k, v = (F.linear(h, weights[n]).unflatten(-1, (-1, shape.head_dim)) for n in ("wq", "wk", "wv"))
            q, k = rotate_pairs(q, cos, sin).transpose(1, 2), rotate_pairs(k, cos, sin)
            keys[:, :, start:end], values[:, :, start:end] = k.transpose(1, 2), v.transpose(1, 2)
            attended = self._attended(q, keys[:, :, :end], values[:, :, :end])
            x = x + F.linear(attended, weights["wo"])
            h = rms_norm(x, weights["ffn_norm"], shape.norm_eps)
            x = x + F.linear(F.silu(F.linear(h, weights["w1"])) * F.linear(h, weights["w3"]), weights["w2"])
        return x

    def _attended(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """q [B, heads, n, head_dim] over all keys [B, kv_heads, end, head_dim] -> [B, n, heads * head_dim]."""
        if q.shape[2] > 1:
            out = F.scaled_dot_product_attention(q, keys, values, is_causal=True, enable_gqa=True)
            return out.transpose(1, 2).flatten(-2)
        # one token sees everything, so the heads of a group can stand where queries of one head would
        grouped = q[:, :, 0].unflatten(1, (keys.shape[1], -1))
        return F.scaled_dot_product_attention(grouped, keys, values).flatten(1)[:, None]
