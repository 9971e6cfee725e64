"""Queries and keys turned by their positions, keys and values written into the paged cache, in one launch."""

from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from slipstream.kernels.launch import launch_options, let_next_start, wait_for_inputs

FEW_ROWS = 64  # up to here a row is spread over many small programs


class Turn(Protocol):
    """What attention.base.Rotation holds; this room lies below that one."""

    @property
    def cos(self) -> Tensor: ...
    @property
    def sin(self) -> Tensor: ...
    @property
    def query_scale(self) -> Tensor | None: ...


def rotate_and_store(qkv: Tensor, rotation: Turn, cache: Tensor, kv_rows: Tensor, num_heads: int) -> Tensor:
    """The turned queries [T, H, D] of qkv [T, H + 2 KV, D]: H = num_heads heads of queries, then keys, then values.

    Keys, turned, and values go to the rows kv_rows, int64 [T] (page * page_size + offset), of `cache`
    [num_pages, page_size, 2, KV, D]. cos and sin of `rotation` are fp32 [T, 1, D]: all values of a head are turned,
    pairs being half a head apart. Turned values are computed in fp32 and rounded to the dtype; queries are then
    multiplied with query_scale, fp32 [T, 1, 1], if there is one, and rounded again. Values are copied. If several rows
    go to one row of the cache, one of them stands there, perhaps a mixture: only the sink may be such a row.
    """
    rows, heads, size = qkv.shape
    kv_heads = cache.shape[3]
    assert heads == num_heads + 2 * kv_heads and cache.shape[2:] == (2, kv_heads, size) and size % 2 == 0
    assert qkv.is_contiguous() and cache.is_contiguous() and cache.dtype == qkv.dtype
    assert kv_rows.is_contiguous() and kv_rows.dtype == torch.int64
    assert rotation.cos.is_contiguous() and rotation.sin.is_contiguous() and rotation.cos.shape == (rows, 1, size)
    assert rotation.query_scale is None or rotation.query_scale.shape == (rows, 1, 1)
    q = torch.empty((rows, num_heads, size), dtype=qkv.dtype, device=qkv.device)
    group, warps = (4, 1) if rows <= FEW_ROWS else (16, 4)
    _rotate_and_store[(rows, triton.cdiv(heads, group))](
        qkv,
        rotation.cos,
        rotation.sin,
        rotation.query_scale,
        cache,
        kv_rows,
        q,
        HEADS=num_heads,
        KV_HEADS=kv_heads,
        HALF=size // 2,
        BLOCK=triton.next_power_of_2(size // 2),
        GROUP=group,
        num_warps=warps,
        **launch_options(qkv.device),
    )
    return q


def rotate_and_store_reference(qkv: Tensor, rotation: Turn, cache: Tensor, kv_rows: Tensor, num_heads: int) -> Tensor:
    """See rotate_and_store."""
    num_turned = num_heads + cache.shape[3]
    wide = qkv[:, :num_turned].float()
    partners = wide.roll(wide.shape[-1] // 2, -1)
    turned = torch.addcmul(wide * rotation.cos, partners, rotation.sin).to(qkv.dtype)
    entries = torch.stack((turned[:, num_heads:], qkv[:, num_turned:]), 1)
    cache.view(-1, *cache.shape[2:]).index_copy_(0, kv_rows, entries)
    q = turned[:, :num_heads]
    return q.contiguous() if rotation.query_scale is None else (q * rotation.query_scale).to(q.dtype)


@triton.jit(do_not_specialize_on_alignment=["kv_rows", "query_scale"])
def _rotate_and_store(  # type: ignore[no-untyped-def]
    qkv,
    cos,
    sin,
    query_scale,
    cache,
    kv_rows,
    q,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program for GROUP heads of a row. Both halves of a head are read once: each is the other's partner.

    In a row of qkv the keys and values lie as in a row of the cache, so that one offset serves for both.
    """
    let_next_start(PDL)
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * GROUP + tl.arange(0, GROUP)[:, None]
    column = tl.arange(0, BLOCK)
    inside = column < HALF
    of_head = head * (2 * HALF) + column[None, :]
    known = (head < HEADS + 2 * KV_HEADS) & inside[None, :]
    angles = row * (2 * HALF) + column
    wait_for_inputs(PDL)
    low_in = qkv + row * ((HEADS + 2 * KV_HEADS) * 2 * HALF) + of_head
    low = tl.load(low_in, known, other=0.0)
    high = tl.load(low_in + HALF, known, other=0.0)
    low_cos, high_cos = tl.load(cos + angles, inside, other=0.0), tl.load(cos + angles + HALF, inside, other=0.0)
    low_sin, high_sin = tl.load(sin + angles, inside, other=0.0), tl.load(sin + angles + HALF, inside, other=0.0)
    kv_row = tl.load(kv_rows + row)
    low_wide, high_wide = low.to(tl.float32), high.to(tl.float32)
    # The fma is written out: which of the two products would be rounded is not left to the compiler.
    low_turned = tl.fma(high_wide, low_sin[None, :], low_wide * low_cos[None, :]).to(low.dtype)
    high_turned = tl.fma(low_wide, high_sin[None, :], high_wide * high_cos[None, :]).to(low.dtype)

    is_value = head >= HEADS + KV_HEADS
    is_query = known & (head < HEADS)
    is_kept = known & (head >= HEADS)
    low_kv = cache + kv_row * (2 * KV_HEADS * 2 * HALF) + (of_head - HEADS * 2 * HALF)
    tl.store(low_kv, tl.where(is_value, low, low_turned), is_kept)
    tl.store(low_kv + HALF, tl.where(is_value, high, high_turned), is_kept)
    if query_scale is not None:
        scale = tl.load(query_scale + row)
        low_turned = (low_turned.to(tl.float32) * scale).to(low.dtype)
        high_turned = (high_turned.to(tl.float32) * scale).to(low.dtype)
    low_q = q + row * (HEADS * 2 * HALF) + of_head
    tl.store(low_q, low_turned, is_query)
    tl.store(low_q + HALF, high_turned, is_query)
