"""Attention with plain torch: the reference for every other backend, and the default on a CPU."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from slipstream.attention.base import Layout, Rotation
from slipstream.attention.gather import ChunkBlock, DecodeGroup, Gather, GatherPlanner
from slipstream.attention.layer import AttentionLayer
from slipstream.attention.spans import has_one_row_each
from slipstream.attention.turn import turn


class TorchNativeAttention:
    """Gathers each request's pages and calls scaled_dot_product_attention.

    A latent cache is its own value too: the whole vector is weighted and the part beyond `latent_dim` dropped, because
    the fused kernel wants keys and values of one size and without it the scores would be stored.
    """

    def __init__(self, layers: Sequence[AttentionLayer], caches: Sequence[Tensor]) -> None:
        self._layers = layers
        # one row per token: keys and values side by side, so that one gather fetches both
        self._caches = [cache.view(-1, *cache.shape[2:]) for cache in caches]
        self._keys = [cache[:, 0] for cache in self._caches]
        self._values = [cache[:, -1] for cache in self._caches]  # of a latent cache: its keys
        self._token_shapes = [layer.cache_shape for layer in layers]
        self._planner = GatherPlanner(caches[0].shape[1], caches[0].dtype, caches[0].device)
        self._windows = dict.fromkeys(layer.window for layer in layers)
        self._kinds = [(layer.window, layer.num_heads // layer.num_kv_heads) for layer in layers]
        self._kv_rows = torch.empty(0, dtype=torch.int64)
        self._num_rows = 0
        self._gathers: list[Gather] = []  # of each layer

    @classmethod
    def supports(cls, layers: Sequence[AttentionLayer], dtype: torch.dtype, device: torch.device) -> str | None:
        """Every layer, dtype and device."""
        return None

    @classmethod
    def workspace_bytes(cls, layers: Sequence[AttentionLayer]) -> int:
        """Nothing is kept."""
        return 0

    def warm_up(self) -> None:
        """There is nothing to compile."""

    def plan(self, layout: Layout) -> None:
        """Work out, once per step and window, which cache rows each request reads."""
        self._kv_rows = layout.kv_rows
        self._num_rows = sum(layout.num_rows)
        longest = max(layout.kv_lens_cpu)
        limits = {window: None if window is None or window >= longest else window for window in self._windows}
        one_row_each = has_one_row_each(layout)  # then one mask serves all kinds of heads
        keys = [(limits[window], 1 if one_row_each else heads_per_kv) for window, heads_per_kv in self._kinds]
        gathers = {key: self._planner.plan(layout, *key, one_row_each=one_row_each) for key in dict.fromkeys(keys)}
        self._gathers = [gathers[key] for key in keys]

    def run(self, layer: int, q: Tensor, k: Tensor, v: Tensor | None) -> Tensor:
        """See AttentionBackend.run."""
        self._keys[layer].index_copy_(0, self._kv_rows, k)
        if v is not None:
            self._values[layer].index_copy_(0, self._kv_rows, v)
        gather = self._gathers[layer]
        if len(gather.decode) == 1 and not gather.chunks:
            return self._run_decode(layer, q, gather.decode[0])
        out = q.new_empty(self._num_rows, q.shape[1] * self._layers[layer].value_dim)
        for group in gather.decode:
            own = q[: group.size * group.num_rows] if group.rows is None else q
            attended = self._run_decode(layer, own, group)
            if group.targets is None:
                out[: attended.shape[0]] = attended
            else:
                out.index_copy_(0, group.targets, attended)
        for block in gather.chunks:
            out[block.begin : block.end] = self._run_chunk(layer, q[block.begin : block.end], block)
        return out

    def run_fused(self, layer: int, qkv: Tensor, rotation: Rotation) -> Tensor:
        """See AttentionBackend.run_fused."""
        return self.run(layer, *turn(self._layers[layer], qkv, rotation))

    def _run_decode(self, layer: int, q: Tensor, group: DecodeGroup) -> Tensor:
        """The query heads that share a KV head become the rows of one small attention: no key is copied per head."""
        spec = self._layers[layer]
        kv = self._caches[layer].index_select(0, group.gather)
        parts = kv.view(group.size, -1, *self._token_shapes[layer]).permute(2, 0, 3, 1, 4).unbind(0)
        if group.rows is not None:
            q = q.index_select(0, group.rows)
        if group.num_rows == 1:
            grouped = q.reshape(group.size, spec.num_kv_heads, -1, spec.head_dim)
        else:  # a request's rows too: [B, KV heads, M * heads_per_kv, head_dim]
            by_row = q.reshape(group.size, group.num_rows, spec.num_kv_heads, -1, spec.head_dim)
            grouped = by_row.transpose(1, 2).flatten(2, 3)
        out = F.scaled_dot_product_attention(grouped, parts[0], parts[-1], attn_mask=group.mask, scale=spec.scale)
        if spec.latent_dim:
            out = out[..., : spec.latent_dim]
        if group.num_rows > 1:
            out = out.view(group.size, spec.num_kv_heads, group.num_rows, -1, spec.value_dim).transpose(1, 2)
        out = out.reshape(group.size * group.num_rows, -1)
        return out if group.kept is None else out.index_select(0, group.kept)

    def _run_chunk(self, layer: int, q: Tensor, block: ChunkBlock) -> Tensor:
        """KV heads stand in the batch dimension; their query heads share keys through a stride of 0."""
        spec = self._layers[layer]
        kv = self._caches[layer].index_select(0, block.gather)
        group_size = spec.num_heads // spec.num_kv_heads
        k, v = (kv[:, which].transpose(0, 1).unsqueeze(1).expand(-1, group_size, -1, -1) for which in (0, -1))
        grouped = q.reshape(-1, spec.num_kv_heads, group_size, spec.head_dim).permute(1, 2, 0, 3)
        out = F.scaled_dot_product_attention(
            grouped, k, v, attn_mask=block.mask, is_causal=block.mask is None, scale=spec.scale
        )
        if spec.latent_dim:
            out = out[..., : spec.latent_dim]
        return out.permute(2, 0, 1, 3).reshape(q.shape[0], -1)
