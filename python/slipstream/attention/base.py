"""The contract between a model, the paged KV cache and an attention backend: plan once per step, run once per layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from slipstream.attention.layer import AttentionLayer


@dataclass(frozen=True)
class Tree:
    """Which of the last rows of each decode request a row sees, where these rows are a tree of drafts.

    Request r's tree occupies the cache rows at `starts[r]` and after, one for each node. Its row j sees every position
    before starts[r], and position starts[r] + t where visible[r, j, t]: its ancestors and itself. A node's distance
    from the root is the number of nodes it sees less one; a window counts distances, not rows.
    """

    starts: tuple[int, ...]  # one for each decode request
    visible: Tensor  # bool [num_decode, most rows of a request, most nodes of a tree]; False beyond a request's own


@dataclass(frozen=True)
class Layout:
    """The rows of one step, grouped by request: T rows of R requests, in the order of the requests.

    The first `num_decode` requests have few rows each: one, or one for each candidate too; the others are chunks of
    prompts. Row j of a request stands at position kv_len - num_rows + j and attends to the positions up to its own: to
    all of them, or in a layer with a window to that many. With a `tree` the rows of decode requests attend as it says.

    Example with page_size 4: a request that decodes at position 5 and one that prefills positions 0..2 give
    num_decode 1, num_rows (1, 3), kv_lens (6, 3), page_tables [[7, 2], [5, 0]] and kv_rows [9, 20, 21, 22]
    (page 2, offset 1; then page 5, offsets 0..2).
    """

    num_decode: int
    num_rows: tuple[int, ...]  # R
    kv_lens: Tensor  # int64 [R]: tokens in the cache once this step has written its rows
    kv_lens_cpu: tuple[int, ...]  # R: the same on the host, or an upper bound where only the device knows
    page_tables: Tensor  # int32 [R, max pages]; unused entries are 0, the sink page
    kv_rows: Tensor  # int64 [T]: page * page_size + offset where each row's key and value go
    tree: Tree | None = None  # None: every request is a chain


@dataclass(frozen=True)
class DeviceRows:
    """The rows of one forward pass as the device sees them: no length is known to the host, and no address changes, so
    that the pass can be captured in a CUDA graph. T rows in NB blocks; the rows of a block are consecutive rows of one
    request at consecutive positions. Row t attends to the positions 0 .. positions[t] of its request.

    Example with page_size 4: slot 0 has 5 committed tokens and the pages [7, 2], and verifies one draft: page_tables
    [[7, 2, 0], ...], positions [5, 6], kv_rows [9, 10], block_slots [0], block_starts [0], block_sizes [2].
    """

    page_tables: Tensor  # int32 [slots, max pages]; of slots in use, unused entries are 0, the sink page
    positions: Tensor  # int64 [T]: in the cache
    kv_rows: Tensor  # int64 [T]: page * page_size + offset where each row's key and value go
    block_slots: Tensor  # int32 or int64 [NB]: the row of page_tables
    block_starts: Tensor  # int32 [NB]: the block's first row
    block_sizes: Tensor  # int32 [NB]: rows of the block; 0: an empty block
    rows_per_block: int  # most rows of a block
    max_kv_len: int  # all positions are below it


@dataclass(frozen=True)
class Rotation:
    """What turns the queries and keys of a step's rows, once for all layers."""

    cos: Tensor  # fp32 [T, 1, rotary_dim]
    sin: Tensor  # fp32 [T, 1, rotary_dim], negated in the first half
    query_scale: Tensor | None  # fp32 [T, 1, 1]: multiplies the turned queries


class AttentionBackend(Protocol):
    """One implementation of attention over the paged cache.

    The cache of a layer is [num_pages, page_size, *AttentionLayer.cache_shape]: keys at 0, values at 1; a latent
    cache has keys only, whose first latent_dim values are the values as well. Layers may differ in all their sizes,
    but page_size and dtype are one.
    """

    def __init__(self, layers: Sequence[AttentionLayer], caches: Sequence[Tensor]) -> None: ...

    @classmethod
    def supports(cls, layers: Sequence[AttentionLayer], dtype: torch.dtype, device: torch.device) -> str | None:
        """None, or one clause that says what this backend cannot do."""
        ...

    @classmethod
    def workspace_bytes(cls, layers: Sequence[AttentionLayer]) -> int:
        """Device memory that an instance needs beside caches and activations."""
        ...

    def warm_up(self) -> None:
        """Compile or load what would otherwise wait for the first request."""
        ...

    def plan(self, layout: Layout) -> None:
        """Prepare everything that the layers of one step share."""
        ...

    def run(self, layer: int, q: Tensor, k: Tensor, v: Tensor | None) -> Tensor:
        """Write k and v into the cache, then attend: q [T, heads, head_dim], k and v [T, kv heads, head_dim], with
        positions already applied -> [T, heads * value_dim]. `v` is None where the layer's cache is latent: `k` is then
        [T, 1, head_dim].
        """
        ...

    def run_fused(self, layer: int, qkv: Tensor, rotation: Rotation) -> Tensor:
        """Turn queries and keys, write keys and values, attend: qkv [T, heads + 2 * kv heads, head_dim], the query
        heads first -> [T, heads * value_dim]. Not for latent caches.
        """
        ...


class DeviceAttention(AttentionBackend, Protocol):
    """A backend that reads lengths on the device, so that its run() can be captured."""

    def plan_rows(self, rows: DeviceRows) -> None:
        """As plan(), without a look at the device or a copy to it."""
        ...
