"""Rows of the embedding table, alone or beside the hidden states that EAGLE's fusion takes with them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from slipstream.kernels.launch import launch_options, let_next_start, wait_for_inputs

_MAX_BLOCK = 2048


def embed_rows(table: Tensor, token_ids: Tensor) -> Tensor:
    """[T, D]: the rows `token_ids`, int64 [T], each in [0, V), of `table` [V, D]."""
    out = torch.empty((token_ids.shape[0], table.shape[1]), dtype=table.dtype, device=table.device)
    _launch(table, token_ids, None, out)
    return out


def embed_and_concat(table: Tensor, token_ids: Tensor, hidden: Tensor) -> Tensor:
    """[T, 2 D]: row token_ids[t] of `table` [V, D], then hidden[t] of [T, D]; of one dtype.

    `token_ids` is int64 [T], each in [0, V).
    """
    rows, size = hidden.shape
    assert token_ids.shape == (rows,) and size == table.shape[1] and hidden.dtype == table.dtype
    assert hidden.is_contiguous()
    out = torch.empty((rows, 2 * size), dtype=table.dtype, device=table.device)
    _launch(table, token_ids, hidden, out)
    return out


def embed_rows_reference(table: Tensor, token_ids: Tensor) -> Tensor:
    """See embed_rows."""
    return table[token_ids]


def embed_and_concat_reference(table: Tensor, token_ids: Tensor, hidden: Tensor) -> Tensor:
    """See embed_and_concat."""
    return torch.cat((table[token_ids], hidden), -1)


def _launch(table: Tensor, token_ids: Tensor, hidden: Tensor | None, out: Tensor) -> None:
    assert table.is_contiguous() and token_ids.is_contiguous() and token_ids.dtype == torch.int64
    rows, size = token_ids.shape[0], table.shape[1]
    block = min(triton.next_power_of_2(size), _MAX_BLOCK)
    _embed[(rows, triton.cdiv(size, block))](
        table,
        token_ids,
        hidden,
        out,
        SIZE=size,
        OUT_SIZE=out.shape[1],
        BLOCK=block,
        num_warps=4,
        **launch_options(table.device),
    )


@triton.jit(do_not_specialize_on_alignment=["token_ids"])
def _embed(  # type: ignore[no-untyped-def]
    table,
    token_ids,
    hidden,
    out,
    SIZE: tl.constexpr,
    OUT_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program for BLOCK columns of a row, and the same columns of its hidden state."""
    let_next_start(PDL)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < SIZE
    target = out + row * OUT_SIZE + columns
    wait_for_inputs(PDL)
    if hidden is not None:
        beside = tl.load(hidden + row * SIZE + columns, inside)
        tl.store(target + SIZE, beside, inside)
    token_id = tl.load(token_ids + row)
    tl.store(target, tl.load(table + token_id * SIZE + columns, inside), inside)
