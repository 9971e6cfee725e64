"""Attention with the Triton kernel: decode, verify and chunk rows, trees and windows; lengths stay on the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from slipstream.attention.base import DeviceRows, Layout, Rotation, Tree
from slipstream.attention.large_prefill import MAX_GATHERED_KEYS, LargePrefill
from slipstream.attention.layer import AttentionLayer
from slipstream.kernels.launch import IS_INTERPRETED
from slipstream.kernels.paged_attention import (
    MAX_HEAD_DIM,
    MAX_HEADS_PER_KV,
    RowBlocks,
    TreeMask,
    paged_attention,
)
from slipstream.kernels.rotate_and_store import rotate_and_store
from slipstream.layers.upload import upload

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_BITS = 64  # of a word of a tree's mask
_CHUNK_QUERIES = 64  # rows times heads of one KV head: as many as the tensor cores of Hopper take at once


@dataclass(frozen=True)
class _Group:
    """Rows that one launch serves."""

    blocks: RowBlocks
    trees: dict[int | None, TreeMask] | None = None  # for each window of a layer; None: rows are causal


@dataclass(frozen=True)
class _LargeChunks:
    """The step's rows [begin, T), which LargePrefill serves in layers whose window is None or `longest` or more."""

    begin: int
    cache_rows: Tensor  # int64 [N]: of all positions of these requests
    longest: int


class TritonAttention:
    """Implements AttentionBackend and DeviceAttention.

    Trees come through plan() only. `large_prefill` serves the chunks of a layout that together have its min_rows rows;
    it needs their exact kv_lens_cpu.
    """

    def __init__(
        self, layers: Sequence[AttentionLayer], caches: Sequence[Tensor], large_prefill: LargePrefill | None = None
    ) -> None:
        self._layers, self._caches = layers, caches
        self._cache_rows = [cache.view(-1, *cache.shape[2:]) for cache in caches]
        self._page_size = caches[0].shape[1]
        self._large_prefill = large_prefill
        self._windows = dict.fromkeys(layer.window for layer in layers)
        self.rows_per_block = rows_per_block(layers)  # of chunks
        self._kv_rows = torch.empty(0, dtype=torch.int64)
        self._decode: list[_Group] = []
        self._chunks: list[_Group] = []
        self._large: _LargeChunks | None = None

    @classmethod
    def supports(cls, layers: Sequence[AttentionLayer], dtype: torch.dtype, device: torch.device) -> str | None:
        """See AttentionBackend.supports."""
        if device.type != "cuda" and not (device.type == "cpu" and IS_INTERPRETED):
            return f"needs a CUDA device, not {device}"
        if dtype not in _DTYPES:
            return f"takes float32, float16 and bfloat16, not {dtype}"
        for layer in layers:
            if layer.latent_dim:
                return "has no latent attention (MLA)"
            if layer.head_dim > MAX_HEAD_DIM:
                return f"takes heads of at most {MAX_HEAD_DIM} values, not {layer.head_dim}"
            if layer.num_heads // layer.num_kv_heads > MAX_HEADS_PER_KV:
                return f"takes at most {MAX_HEADS_PER_KV} query heads for each KV head"
        return None

    @classmethod
    def workspace_bytes(cls, layers: Sequence[AttentionLayer]) -> int:
        """See AttentionBackend.workspace_bytes: partial results are counted among the activations."""
        return 0

    def warm_up(self) -> None:
        """The kernel is compiled where it is needed first, which is before the server is ready."""

    def plan_rows(self, rows: DeviceRows) -> None:
        """See DeviceAttention.plan_rows."""
        blocks = RowBlocks(
            rows.page_tables,
            rows.positions,
            rows.block_slots,
            rows.block_starts,
            rows.block_sizes,
            rows.rows_per_block,
            rows.max_kv_len,
        )
        self._kv_rows = rows.kv_rows
        self._decode, self._chunks, self._large = [_Group(blocks)], [], None

    def plan(self, layout: Layout) -> None:
        """Cut chunks into blocks; a decode request is one block."""
        self._kv_rows = layout.kv_rows
        self._decode, self._chunks = [], []
        num_decode_rows = sum(layout.num_rows[: layout.num_decode])
        self._large = self._plan_large(layout, num_decode_rows)
        positions = torch.empty(sum(layout.num_rows), dtype=torch.int64, device=layout.kv_lens.device)
        if layout.num_decode:
            parts = [(request, 0, count) for request, count in enumerate(layout.num_rows[: layout.num_decode])]
            blocks = _blocks(layout, parts, positions)
            self._decode = [_Group(blocks, None if layout.tree is None else self._tree_masks(layout, layout.tree))]
        windows_need_chunks = self._large is not None and any(
            window is not None and window < self._large.longest for window in self._windows
        )
        if layout.num_decode < len(layout.num_rows) and (self._large is None or windows_need_chunks):
            step = self.rows_per_block
            parts = [
                (request, first, min(step, layout.num_rows[request] - first))
                for request in range(layout.num_decode, len(layout.num_rows))
                for first in range(0, layout.num_rows[request], step)
            ]
            self._chunks = [_Group(_blocks(layout, parts, positions))]

    def run(self, layer: int, q: Tensor, k: Tensor, v: Tensor | None) -> Tensor:
        """See AttentionBackend.run."""
        assert v is not None, "a latent cache, which supports() refuses"
        self._cache_rows[layer][:, 0].index_copy_(0, self._kv_rows, k)
        self._cache_rows[layer][:, 1].index_copy_(0, self._kv_rows, v)
        return self._attend(layer, q)

    def run_fused(self, layer: int, qkv: Tensor, rotation: Rotation) -> Tensor:
        """See AttentionBackend.run_fused."""
        num_heads = self._layers[layer].num_heads
        return self._attend(layer, rotate_and_store(qkv, rotation, self._caches[layer], self._kv_rows, num_heads))

    def _attend(self, layer: int, q: Tensor) -> Tensor:
        """q [T, heads, head_dim] -> [T, heads * head_dim]; the cache has the step's keys and values."""
        spec, large = self._layers[layer], self._large
        if large is not None and spec.window is not None and spec.window < large.longest:
            large = None
        if large is not None and large.begin == 0:
            return self._run_large(layer, q, large)
        out = q.new_empty(q.shape[0], spec.num_heads * spec.head_dim)
        for group in self._decode if large is not None else (*self._decode, *self._chunks):
            tree = None if group.trees is None else group.trees[spec.window]
            paged_attention(q, self._caches[layer], group.blocks, out, spec.scale, window=spec.window, tree=tree)
        if large is not None:
            out[large.begin :] = self._run_large(layer, q, large)
        return out

    def _run_large(self, layer: int, q: Tensor, large: _LargeChunks) -> Tensor:
        assert self._large_prefill is not None
        kv = self._cache_rows[layer].index_select(0, large.cache_rows)
        return self._large_prefill.run(self._layers[layer], q[large.begin :], kv[:, 0], kv[:, 1])

    def _plan_large(self, layout: Layout, num_decode_rows: int) -> _LargeChunks | None:
        num_rows, kv_lens = layout.num_rows[layout.num_decode :], layout.kv_lens_cpu[layout.num_decode :]
        if self._large_prefill is None or not num_rows or sum(num_rows) < self._large_prefill.min_rows:
            return None
        if sum(kv_lens) > MAX_GATHERED_KEYS:
            return None
        if all(window is not None and window < max(kv_lens) for window in self._windows):
            return None
        self._large_prefill.plan(num_rows, kv_lens, layout.kv_lens.device)
        tables = layout.page_tables[layout.num_decode :]
        offsets = torch.arange(self._page_size, device=tables.device)
        parts = [
            (table[: -(-length // self._page_size), None].long() * self._page_size + offsets).view(-1)[:length]
            for table, length in zip(tables, kv_lens, strict=True)
        ]
        return _LargeChunks(num_decode_rows, torch.cat(parts), max(kv_lens))

    def _tree_masks(self, layout: Layout, tree: Tree) -> dict[int | None, TreeMask]:
        device, num_rows = layout.kv_lens.device, layout.num_rows[: layout.num_decode]
        width = tree.visible.shape[1]
        own = [request * width + row for request, count in enumerate(num_rows) for row in range(count)]
        requests = [request for request, count in enumerate(num_rows) for _ in range(count)]
        indices = upload((own, requests), torch.int64, device)
        starts = upload(tree.starts, torch.int64, device)
        visible = tree.visible.flatten(0, 1).index_select(0, indices[0])
        counts = visible.cumsum(1)  # parents come before their children: an ancestor's distance from the root, plus 1
        num_seen = counts[:, -1:]
        positions = starts.index_select(0, indices[1]) + num_seen.squeeze(1) - 1
        near = {
            window: visible if window is None else visible & (num_seen - counts < window) for window in self._windows
        }
        return {window: TreeMask(starts, _pack(seen), positions) for window, seen in near.items()}


def rows_per_block(layers: Sequence[AttentionLayer]) -> int:
    """Into blocks of how many rows a chunk is best cut.

    >>> rows_per_block([AttentionLayer(32, 8, 128, scale=1.0)])
    16
    """
    return max(_CHUNK_QUERIES // max(layer.num_heads // layer.num_kv_heads for layer in layers), 1)


def _blocks(layout: Layout, parts: Sequence[tuple[int, int, int]], positions: Tensor) -> RowBlocks:
    """Blocks of `parts`: (request, its first row in the block, rows). Fills in `positions` [T] of their first rows."""
    device, begins = positions.device, list(accumulate(layout.num_rows, initial=0))
    values = [
        (request, begins[request] + first, count, layout.num_rows[request] - first) for request, first, count in parts
    ]
    table = upload(values, torch.int32, device).T.contiguous()
    slots, starts, sizes, tails = table.unbind(0)
    positions.index_copy_(0, starts.long(), layout.kv_lens.index_select(0, slots) - tails)
    most = max(count for _, _, count in parts)
    return RowBlocks(layout.page_tables, positions, slots, starts, sizes, most, max(layout.kv_lens_cpu))


def _pack(visible: Tensor) -> Tensor:
    """bool [T, nodes] -> int64 [T, words]: bit t % 64 of word t // 64 is what node t has."""
    num_rows, num_nodes = visible.shape
    words = visible.new_zeros(num_rows, -(-num_nodes // _BITS) * _BITS, dtype=torch.int64)
    words[:, :num_nodes] = visible
    powers = torch.ones((), dtype=torch.int64, device=visible.device) << torch.arange(_BITS, device=visible.device)
    return (words.view(num_rows, -1, _BITS) * powers).sum(2)
