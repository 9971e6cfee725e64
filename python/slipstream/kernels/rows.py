"""Where the rows of a forward pass stand: positions and cache rows, from lengths and page tables on the device."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from slipstream.kernels.launch import launch_options, let_next_start, wait_for_inputs

_BLOCK = 128


def decode_rows(
    slots: Tensor,
    committed_len: Tensor,
    page_tables: Tensor,
    rows_per_slot: int,
    page_size: int,
    positions: Tensor,
    kv_rows: Tensor,
) -> None:
    """Fill `positions` and `kv_rows`, int64 [B * M], for M = rows_per_slot rows of each of the slots.

    Row j of slot s = slots[b], at b * M + j, is at committed_len[s] + j; its cache row is page * page_size + offset.
    A position beyond the table goes to row j % page_size of the sink page 0. `slots` is int64 [B], `committed_len`
    int64 [S], `page_tables` int32 [S, P].

    With page_size 4, the table [7, 2] and 6 committed tokens, 3 rows stand at [6, 7, 8] and go to [10, 11, 2].
    """
    count = slots.shape[0] * rows_per_slot
    assert positions.shape == kv_rows.shape == (count,) and positions.dtype == kv_rows.dtype == torch.int64
    assert slots.dtype == committed_len.dtype == torch.int64 and page_tables.dtype == torch.int32
    assert all(tensor.is_contiguous() for tensor in (slots, committed_len, page_tables, positions, kv_rows))
    _decode_rows[(triton.cdiv(count, _BLOCK),)](
        slots,
        committed_len,
        page_tables,
        positions,
        kv_rows,
        count,
        rows_per_slot,
        page_tables.shape[1],
        PAGE_SIZE=page_size,
        BLOCK=_BLOCK,
        num_warps=4,
        **launch_options(slots.device),
    )


def decode_rows_reference(
    slots: Tensor, committed_len: Tensor, page_tables: Tensor, rows_per_slot: int, page_size: int
) -> tuple[Tensor, Tensor]:
    """(positions, kv_rows): see decode_rows."""
    steps = torch.arange(rows_per_slot, device=slots.device)
    positions = committed_len[slots].unsqueeze(1) + steps
    columns = positions // page_size
    pages = page_tables[slots.unsqueeze(1), columns.clamp(max=page_tables.shape[1] - 1)].long()
    kv_rows = torch.where(columns < page_tables.shape[1], pages * page_size + positions % page_size, steps % page_size)
    return positions.flatten(), kv_rows.flatten()


def chunk_rows(row_slots: Tensor, positions: Tensor, page_tables: Tensor, page_size: int) -> Tensor:
    """int64 [T]: page * page_size + offset of positions[t] of slot row_slots[t], both int64 [T].

    A position beyond the table goes to row position % page_size of the sink page 0. `page_tables` is int32 [S, P].

    With page_size 4 and the page table [7, 2] for slot 0, positions [1, 5, 10] of slots [0, 0, 0] give [29, 9, 2].
    """
    count = positions.shape[0]
    assert row_slots.shape == (count,) and row_slots.dtype == positions.dtype == torch.int64
    assert page_tables.dtype == torch.int32
    assert all(tensor.is_contiguous() for tensor in (row_slots, positions, page_tables))
    kv_rows = torch.empty_like(positions)
    _chunk_rows[(triton.cdiv(count, _BLOCK),)](
        row_slots,
        positions,
        page_tables,
        kv_rows,
        count,
        page_tables.shape[1],
        PAGE_SIZE=page_size,
        BLOCK=_BLOCK,
        num_warps=4,
        **launch_options(positions.device),
    )
    return kv_rows


def chunk_rows_reference(row_slots: Tensor, positions: Tensor, page_tables: Tensor, page_size: int) -> Tensor:
    """See chunk_rows."""
    columns, offsets = positions // page_size, positions % page_size
    pages = page_tables[row_slots, columns.clamp(max=page_tables.shape[1] - 1)].long()
    return torch.where(columns < page_tables.shape[1], pages * page_size, 0) + offsets


@triton.jit
def _locate(page_tables, slot, position, sink, width, inside, PAGE_SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The cache rows of positions of slots; `sink` where the table of `width` pages ends before."""
    column = position // PAGE_SIZE
    in_table = column < width
    page = tl.load(page_tables + slot * width + column, inside & in_table, other=0).to(tl.int64)
    return tl.where(in_table, page * PAGE_SIZE + position % PAGE_SIZE, sink)


@triton.jit(
    do_not_specialize=["count", "rows_per_slot", "width"],
    do_not_specialize_on_alignment=["slots", "committed_len", "page_tables", "positions", "kv_rows"],
)
def _decode_rows(  # type: ignore[no-untyped-def]
    slots,
    committed_len,
    page_tables,
    positions,
    kv_rows,
    count,
    rows_per_slot,
    width,
    PAGE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program for BLOCK of the `count` rows."""
    let_next_start(PDL)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    step = index % rows_per_slot
    wait_for_inputs(PDL)
    slot = tl.load(slots + index // rows_per_slot, inside, other=0)
    position = tl.load(committed_len + slot, inside, other=0) + step
    sink = (step % PAGE_SIZE).to(tl.int64)
    tl.store(positions + index, position, inside)
    tl.store(kv_rows + index, _locate(page_tables, slot, position, sink, width, inside, PAGE_SIZE), inside)


@triton.jit(
    do_not_specialize=["count", "width"],
    do_not_specialize_on_alignment=["row_slots", "positions", "page_tables", "kv_rows"],
)
def _chunk_rows(  # type: ignore[no-untyped-def]
    row_slots,
    positions,
    page_tables,
    kv_rows,
    count,
    width,
    PAGE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program for BLOCK of the `count` rows."""
    let_next_start(PDL)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    wait_for_inputs(PDL)
    slot = tl.load(row_slots + index, inside, other=0)
    position = tl.load(positions + index, inside, other=0)
    sink = position % PAGE_SIZE
    tl.store(kv_rows + index, _locate(page_tables, slot, position, sink, width, inside, PAGE_SIZE), inside)
