"""Attention of ragged rows over a paged KV cache, with lengths and page tables that only the device knows.

Flash decoding (Dao et al., 2023): the keys of a request are split among programs, each keeps an online softmax
(Milakov and Gimelshein, 2018) of its share, and a second kernel merges the shares. A program serves all query heads of
one KV head and several rows of one request at once, so that every key is loaded once for all of them.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from slipstream.kernels.launch import launch_options, let_next_start, num_multiprocessors, wait_for_inputs

MAX_HEAD_DIM = 256
MAX_HEADS_PER_KV = 128
_MAX_QUERIES = {2: 128, 4: 32}  # rows times heads of one program that fit into registers, by bytes of a value
_KEYS_PER_SPLIT = 64  # as short a share as any program gets
_MAX_SPLITS = 128  # what one program merges at once
_MANY_SPLITS = 32  # more are not worth their merge, but where a multiprocessor would have nothing to do
_FEW_MERGES = 1024  # rows times heads: up to here each is shared by several programs
_MERGED_VALUES = 32  # of a head, by one of these


@dataclass(frozen=True)
class RowBlocks:
    """Which rows attend to what: NB blocks of consecutive rows of one request at consecutive positions."""

    page_tables: Tensor  # int32 [slots, max pages]; page 0 is the sink: nothing of it counts
    positions: Tensor  # int64 [T]: read at the first row of each block only
    slots: Tensor  # int32 or int64 [NB]: the row of page_tables
    starts: Tensor  # int32 [NB]: the block's first row
    sizes: Tensor  # int32 [NB]: rows of the block; 0: an empty block
    rows_per_block: int  # most rows of a block
    max_kv_len: int  # what no position exceeds, less one


@dataclass(frozen=True)
class TreeMask:
    """Rows that attend to the cache before their tree and to some of its nodes, which lie from `starts` on."""

    starts: Tensor  # int64 [NB]: position of each block's first node
    bits: Tensor  # int64 [T, words]: bit t % 64 of word t // 64 is set where the row sees node t, the window regarded
    positions: Tensor  # int64 [T]: start plus the row's distance from the root; what is before the start lies in the
    # window where it lies in that of this position


@dataclass(frozen=True)
class AttentionConfig:
    """How the kernel is compiled."""

    block_n: int  # keys of one step of the loop
    num_warps: int
    num_stages: int  # of the loop's pipeline


def attention_config(queries: int, head_dim: int, element_size: int) -> AttentionConfig:
    """For programs of `queries` (rows times heads, padded: 16 .. 128) and a cache of `element_size` bytes a value.

    The less shared memory a program takes, the more of them are on a multiprocessor and have loads on their way.

    >>> attention_config(16, 128, 2)
    AttentionConfig(block_n=64, num_warps=4, num_stages=2)
    """
    key_bytes = triton.next_power_of_2(head_dim) * element_size
    block_n = 64 if key_bytes <= 256 else 32 if key_bytes <= 512 else 16
    return AttentionConfig(block_n, num_warps=8 if queries >= _MAX_QUERIES[element_size] else 4, num_stages=2)


def choose_splits(num_programs: int, max_kv_len: int, multiprocessors: int, queries: int = 16) -> int:
    """Among how many programs of so many `queries` the keys of a request are split, where there are `num_programs`
    without a split: as many as a multiprocessor has at once are enough, more would only add to the merge.

    >>> choose_splits(8, 32768, 132), choose_splits(64, 32768, 132), choose_splits(512, 32768, 132)
    (32, 8, 1)
    >>> choose_splits(8, 600, 132), choose_splits(2, 32768, 132), choose_splits(64, 32768, 132, queries=64)
    (9, 64, 4)
    """
    at_once = 4 if queries <= 16 else 3 if queries <= 32 else 2
    fill = multiprocessors // num_programs
    wanted = min(at_once * multiprocessors // num_programs, max(fill, _MANY_SPLITS))
    if wanted > _MANY_SPLITS:
        wanted -= wanted % _MANY_SPLITS  # the merge is compiled for powers of two
    return max(min(wanted, max_kv_len // _KEYS_PER_SPLIT, _MAX_SPLITS), 1)


@dataclass(frozen=True)
class Launch:
    """How rows and keys are shared among programs."""

    rows_per_tile: int  # of a block, in one program
    tiles: int  # of a block
    queries: int  # rows times heads of a program, padded
    splits: int
    config: AttentionConfig


def choose_launch(
    num_blocks: int,
    rows_per_block: int,
    heads: tuple[int, int, int],
    element_size: int,
    max_kv_len: int,
    multiprocessors: int,
    splits: int | None = None,
    config: AttentionConfig | None = None,
) -> Launch:
    """For `heads`: query heads, KV heads, values of each. See paged_attention().

    >>> launch = choose_launch(1, 4, (32, 8, 128), 2, 32768, 132)
    >>> launch.rows_per_tile, launch.tiles, launch.queries, launch.splits, launch.config.block_n
    (4, 1, 16, 32, 64)
    """
    num_heads, kv_heads, head_dim = heads
    heads_per_kv = num_heads // kv_heads
    tiles = triton.cdiv(rows_per_block, max(_MAX_QUERIES[element_size] // heads_per_kv, 1))
    rows_per_tile = triton.cdiv(rows_per_block, tiles)
    queries = max(triton.next_power_of_2(rows_per_tile * heads_per_kv), 16)
    programs = num_blocks * tiles * kv_heads
    splits = splits or choose_splits(programs, max_kv_len, multiprocessors, queries)
    assert splits <= _MAX_SPLITS, f"{splits} splits: at most {_MAX_SPLITS}"
    config = config or attention_config(queries, head_dim, element_size)
    return Launch(rows_per_tile, tiles, queries, splits, config)


def paged_attention(
    q: Tensor,
    cache: Tensor,
    blocks: RowBlocks,
    out: Tensor,
    scale: float,
    *,
    window: int | None = None,
    tree: TreeMask | None = None,
    sees_block: bool = False,
    splits: int | None = None,
    config: AttentionConfig | None = None,
) -> None:
    """Write softmax(q k^T * scale) v into the rows of `out` that blocks cover.

    q is [T, heads, head_dim] with contiguous heads, cache [pages, page_size, 2, KV heads, head_dim] with keys at 0 and
    values at 1, out [T, heads * head_dim]; all of one dtype. A row at position p attends to the positions 0 .. p, to
    those of its tree where there is a `tree`, or with `sees_block` to all up to the end of its block; with a `window`
    to none before p - window + 1. Scores and sums are fp32; weights are rounded to the cache's dtype before they meet
    the values. `splits` and `config` override choose_splits() and attention_config().

    Positions beyond the page table and keys in the sink count as keys and values of zeros: only rows that are there
    themselves, whose results nobody uses, see them.
    """
    num_heads, head_dim = q.shape[1:]
    page_size, kv_heads = cache.shape[1], cache.shape[3]
    num_blocks, rows_per_block = blocks.slots.shape[0], blocks.rows_per_block
    heads, multiprocessors = (num_heads, kv_heads, head_dim), num_multiprocessors(q.device)
    launch = choose_launch(
        num_blocks, rows_per_block, heads, q.element_size(), blocks.max_kv_len, multiprocessors, splits, config
    )
    tiles, splits, config = launch.tiles, launch.splits, launch.config
    partial = log_sums = None
    if splits > 1:
        shape = (splits, num_blocks * rows_per_block, num_heads)
        partial = torch.empty((*shape, head_dim), dtype=torch.float32, device=q.device)
        log_sums = torch.empty(shape, dtype=torch.float32, device=q.device)
    options = launch_options(q.device)
    block_d = max(triton.next_power_of_2(head_dim), 16)
    _attend[(kv_heads, num_blocks * tiles, splits)](
        q,
        cache,
        out,
        partial,
        log_sums,
        blocks.page_tables,
        blocks.positions,
        blocks.slots,
        blocks.starts,
        blocks.sizes,
        tree.starts if tree else None,
        tree.bits if tree else None,
        tree.positions if tree else None,
        scale * math.log2(math.e),
        q.stride(0),
        blocks.page_tables.shape[1],
        tree.bits.shape[1] if tree else 0,
        rows_per_block,
        launch.rows_per_tile,
        tiles,
        splits,
        KV_HEADS=kv_heads,
        HEADS_PER_KV=num_heads // kv_heads,
        HEAD_DIM=head_dim,
        PAGE_SIZE=page_size,
        WINDOW=window or 0,
        IS_TREE=tree is not None,
        SEES_BLOCK=sees_block,
        IS_SPLIT=splits > 1,
        BLOCK_M=launch.queries,
        BLOCK_N=config.block_n,
        BLOCK_D=block_d,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",  # of fp32 operands only
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **options,
    )
    if splits > 1:
        assert partial is not None and log_sums is not None
        _merge(partial, log_sums, out, blocks)


def _merge(partial: Tensor, log_sums: Tensor, out: Tensor, blocks: RowBlocks) -> None:
    """Write the sum of the shares' results into `out`: partial [splits, NB * rows_per_block, heads, head_dim]."""
    splits, num_rows, num_heads, head_dim = partial.shape
    block_s = max(triton.next_power_of_2(splits), 16)
    block_d = max(triton.next_power_of_2(head_dim), 16)
    if num_rows * num_heads <= _FEW_MERGES:
        block_d = min(block_d, _MERGED_VALUES)
    _combine[(num_heads, num_rows, triton.cdiv(head_dim, block_d))](
        partial,
        log_sums,
        out,
        blocks.starts,
        blocks.sizes,
        blocks.rows_per_block,
        splits,
        HEADS=num_heads,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        BLOCK_S=block_s,
        num_warps=max(block_s * block_d // 4096, 1),  # what the registers of a warp hold; alone, it meets no barrier
        **launch_options(partial.device),
    )


def paged_attention_reference(
    q: Tensor,
    cache: Tensor,
    blocks: RowBlocks,
    scale: float,
    *,
    window: int | None = None,
    tree: TreeMask | None = None,
    sees_block: bool = False,
) -> Tensor:
    """What paged_attention() writes, [T, heads * head_dim], zeros in rows without a block; all in q's dtype."""
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    page_size, kv_heads = cache.shape[1], cache.shape[3]
    counts = zip(blocks.slots.tolist(), blocks.starts.tolist(), blocks.sizes.tolist(), strict=True)
    for block, (slot, start, size) in enumerate(counts):
        if size == 0:
            continue
        rows = slice(start, start + size)
        first = int(blocks.positions[start])
        own = torch.arange(first, first + size, device=q.device)[:, None]
        at = torch.arange(min(first + size, blocks.page_tables.shape[1] * page_size), device=q.device)
        pages = blocks.page_tables[slot, at // page_size]
        kv = cache[pages, at % page_size].to(q.dtype).masked_fill((pages == 0).view(-1, 1, 1, 1), 0)
        visible = (at <= own) | sees_block
        if tree is not None:
            node, own = at - tree.starts[block], tree.positions[rows, None]
            bits = tree.bits[rows].index_select(1, node.clamp(min=0) // 64) >> (node % 64)
            visible = (node < 0) | (bits & 1 == 1)
        if window is not None:
            is_node = False if tree is None else at >= tree.starts[block]
            visible = visible & ((own - at < window) | is_node)
        queries = q[rows].reshape(size, kv_heads, -1, q.shape[2])
        scores = torch.einsum("mkgd,nkd->kgmn", queries, kv[:, 0]) * scale
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        out[rows] = torch.einsum("kgmn,nkd->mkgd", weights, kv[:, 1]).flatten(1, 2)
    return out.flatten(1)


@triton.jit(
    do_not_specialize=["table_width", "num_words", "rows_per_block", "rows_per_tile", "tiles", "num_splits"],
    do_not_specialize_on_alignment=["page_tables", "positions", "block_slots", "block_starts", "block_sizes"],
)
def _attend(  # type: ignore[no-untyped-def]
    q,
    cache,
    out,
    partial,
    log_sums,
    page_tables,
    positions,
    block_slots,
    block_starts,
    block_sizes,
    tree_starts,
    tree_bits,
    tree_positions,
    scale,  # of the scores, times log2(e)
    q_stride,
    table_width,
    num_words,
    rows_per_block,
    rows_per_tile,
    tiles,
    num_splits,
    KV_HEADS: tl.constexpr,
    HEADS_PER_KV: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    IS_TREE: tl.constexpr,
    SEES_BLOCK: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (KV head, tile, split): some rows of a block, all heads of the KV head, every num_splits-th BLOCK_N keys.

    So where a program's keys begin depends on no length, and its first pages are loaded without a wait for one. Loads
    that need each other's results cost a way to memory each; all others stand together before what uses them.
    """
    let_next_start(PDL)
    HEADS: tl.constexpr = KV_HEADS * HEADS_PER_KV
    MINUS_INFINITY: tl.constexpr = float("-inf")
    kv_head = tl.program_id(0)
    # Neighbours on the first axis read neighbouring memory. The last tiles come first: a chunk's are the longest.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    split = tl.program_id(2)
    block = tile // tiles
    first = tile % tiles * rows_per_tile
    step = BLOCK_N
    if IS_SPLIT:
        step = BLOCK_N * num_splits
    wait_for_inputs(PDL)

    block_size = tl.load(block_sizes + block)
    block_start = tl.load(block_starts + block)
    table = page_tables + tl.load(block_slots + block).to(tl.int64) * table_width
    num_rows = tl.minimum(block_size - first, rows_per_tile)
    if num_rows <= 0:
        return
    start = block_start + first
    position = tl.load(positions + block_start).to(tl.int32) + first
    query = tl.arange(0, BLOCK_M)
    row = query // HEADS_PER_KV
    head = kv_head * HEADS_PER_KV + query % HEADS_PER_KV
    is_query = row < num_rows

    end = position + num_rows
    if SEES_BLOCK:
        end = position - first + block_size
    # from where the window of a row is counted, and what it sees beyond its tree's start
    stands_at = position + row
    lowest = position
    tree_start = end
    if IS_TREE:
        tree_start = tl.load(tree_starts + block).to(tl.int32)
        stands_at = tl.load(tree_positions + start + row, mask=is_query, other=0).to(tl.int32)
        lowest = tree_start
    last_seen = stands_at
    if SEES_BLOCK:
        last_seen = tl.zeros_like(stands_at) + end - 1
    begin = split * BLOCK_N
    if WINDOW > 0:
        begin += tl.maximum(lowest - WINDOW + 1, 0)
    key = begin + tl.arange(0, BLOCK_N)
    table_end = table_width * PAGE_SIZE
    pages = tl.load(table + key // PAGE_SIZE, mask=key < table_end, other=0)
    dim = tl.arange(0, BLOCK_D)
    is_value = is_query[:, None] & (dim < HEAD_DIM)[None, :]
    q_rows = (start + row).to(tl.int64)
    q_tile = tl.load(q + (q_rows * q_stride + head * HEAD_DIM)[:, None] + dim[None, :], mask=is_value, other=0.0)

    end = tl.minimum(end, table_end)
    if IS_SPLIT:
        partial_block = split.to(tl.int64) * (tl.num_programs(1) // tiles) + block
        partial_row = (partial_block * rows_per_block + first + row) * HEADS
        if begin >= end:
            tl.store(log_sums + partial_row + head, MINUS_INFINITY, mask=is_query)
            return

    highest = tl.full([BLOCK_M], MINUS_INFINITY, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    key_pointers = cache + kv_head * HEAD_DIM + dim[None, :]
    for lowest_key in range(begin, end, step):
        key = lowest_key + tl.arange(0, BLOCK_N)
        # What lies beyond the end or in the sink may be NaN, which times a weight of 0 is NaN.
        is_key = (pages != 0) & (key < end)
        cache_row = pages.to(tl.int64) * PAGE_SIZE + key % PAGE_SIZE
        key_mask = is_key[:, None]
        if BLOCK_D != HEAD_DIM:
            key_mask = key_mask & (dim < HEAD_DIM)[None, :]
        pointers = key_pointers + cache_row[:, None] * (2 * KV_HEADS * HEAD_DIM)
        keys = tl.load(pointers, mask=key_mask, other=0.0)
        values = tl.load(pointers + KV_HEADS * HEAD_DIM, mask=key_mask, other=0.0)
        scores = tl.dot(q_tile, tl.trans(keys), input_precision=PRECISION) * scale
        if IS_TREE:
            is_node = (key >= tree_start) & (key < end)
            node = tl.maximum(key - tree_start, 0)
            words = tl.load(
                tree_bits + ((start + row) * num_words)[:, None] + (node // 64)[None, :],
                mask=is_query[:, None] & is_node[None, :],
                other=0,
            )
            is_visible = (words >> (node % 64)[None, :].to(tl.int64)) & 1 != 0
            is_before = (key < tree_start)[None, :]
            if WINDOW > 0:
                is_before = is_before & (key[None, :] > stands_at[:, None] - WINDOW)
            is_visible = is_before | is_visible
        else:
            is_visible = (key < end)[None, :] & (key[None, :] <= last_seen[:, None])
            if WINDOW > 0:
                is_visible = is_visible & (key[None, :] > stands_at[:, None] - WINDOW)
        scores = tl.where(is_visible, scores, MINUS_INFINITY)
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        shift = tl.where(new_highest == MINUS_INFINITY, 0.0, new_highest)
        weights = tl.exp2(scores - shift[:, None])
        decay = tl.exp2(highest - shift)
        total = total * decay + tl.sum(weights, 1)
        sums = tl.dot(weights.to(values.dtype), values, sums * decay[:, None], input_precision=PRECISION)
        highest = new_highest
        key += step  # a step ahead: the loads of keys wait for no load of this step
        pages = tl.load(table + key // PAGE_SIZE, mask=key < end, other=0)

    sees_nothing = total == 0  # in this share; false for NaN
    total = tl.where(sees_nothing, 1.0, total)
    sums = sums / total[:, None]
    if IS_SPLIT:
        log_sum = tl.where(sees_nothing, MINUS_INFINITY, highest + tl.log2(total))
        tl.store(log_sums + partial_row + head, log_sum, mask=is_query)
        tl.store(partial + ((partial_row + head) * HEAD_DIM)[:, None] + dim[None, :], sums, mask=is_value)
    else:
        rows = (q_rows * HEADS + head) * HEAD_DIM
        tl.store(out + rows[:, None] + dim[None, :], sums.to(out.dtype.element_ty), mask=is_value)


@triton.jit(
    do_not_specialize=["rows_per_block", "num_splits"], do_not_specialize_on_alignment=["block_starts", "block_sizes"]
)
def _combine(  # type: ignore[no-untyped-def]
    partial,
    log_sums,
    out,
    block_starts,
    block_sizes,
    rows_per_block,
    num_splits,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (head, row of a block, BLOCK_D values): sum of the shares' results, each weighted by its
    sum of exponentials. Shares without keys are not loaded.
    """
    let_next_start(PDL)
    MINUS_INFINITY: tl.constexpr = float("-inf")
    head = tl.program_id(0)
    block = tl.program_id(1) // rows_per_block
    row = tl.program_id(1) % rows_per_block
    split = tl.arange(0, BLOCK_S)
    index = (split.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * HEADS + head
    wait_for_inputs(PDL)
    log_sum = tl.load(log_sums + index, mask=split < num_splits, other=MINUS_INFINITY)
    start = tl.load(block_starts + block)
    if row >= tl.load(block_sizes + block):
        return
    dim = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_there = (log_sum != MINUS_INFINITY)[:, None] & (dim < HEAD_DIM)[None, :]
    share = tl.load(partial + (index * HEAD_DIM)[:, None] + dim[None, :], mask=is_there, other=0.0)
    highest = tl.max(log_sum, 0)
    weights = tl.exp2(log_sum - tl.where(highest == MINUS_INFINITY, 0.0, highest))
    total = tl.sum(weights, 0)
    sums = tl.sum(weights[:, None] * share, 0) / tl.where(total == 0, 1.0, total)
    target = ((start + row).to(tl.int64) * HEADS + head) * HEAD_DIM
    tl.store(out + target + dim, sums.to(out.dtype.element_ty), mask=dim < HEAD_DIM)
