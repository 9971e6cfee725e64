"""Residual add and root-mean-square norm in one pass over a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from slipstream.kernels.launch import launch_options, let_next_start, wait_for_inputs

MAX_SIZE = 16384  # values of a row, which one program keeps in registers


def add_rms_norm(delta: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(h / sqrt(mean(h^2) + eps) * weight, h) with h = residual + delta: two of [T, D].

    `delta` and `residual` are [T, D] of one dtype, `weight` is fp32 [D], D <= 16384. h is rounded to the dtype, written
    over `residual` and returned; the norm (Zhang and Sennrich, 2019) reads that h, computes in fp32 and is rounded
    once. Without a delta, h is the residual as it is, and its rows may lie apart (columns of a wider matrix). No bit
    of a row depends on other rows.
    """
    rows, size = residual.shape
    assert size <= MAX_SIZE, f"rows of {size} values: at most {MAX_SIZE}"
    assert residual.stride(1) == 1 and weight.shape == (size,) and weight.dtype == torch.float32
    if delta is not None:
        assert delta.is_contiguous() and residual.is_contiguous()
        assert delta.shape == residual.shape and delta.dtype == residual.dtype
    normed = torch.empty((rows, size), dtype=residual.dtype, device=residual.device)
    block = triton.next_power_of_2(size)
    _add_rms_norm[(rows,)](
        delta,
        residual,
        weight,
        normed,
        residual.stride(0),
        eps,
        SIZE=size,
        BLOCK=block,
        num_warps=min(max(block // 512, 1), 16),
        **launch_options(residual.device),
    )
    return normed, residual


def add_rms_norm_reference(delta: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See add_rms_norm; `residual` stays as it is."""
    h = residual if delta is None else residual + delta
    wide = h.float()
    return (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * weight).to(h.dtype), h


@triton.jit
def _add_rms_norm(  # type: ignore[no-untyped-def]
    delta, residual, weight, normed, stride, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """One program for each row."""
    let_next_start(PDL)
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    row = tl.program_id(0).to(tl.int64)
    here, offsets = residual + row * stride + columns, row * SIZE + columns
    factors = tl.load(weight + columns, inside, other=0.0)
    wait_for_inputs(PDL)
    h = tl.load(here, inside, other=0.0)
    if delta is not None:
        h = (h.to(tl.float32) + tl.load(delta + offsets, inside, other=0.0).to(tl.float32)).to(h.dtype)
        tl.store(here, h, inside)
    wide = h.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / SIZE + eps)
    tl.store(normed + offsets, (wide * scale * factors).to(h.dtype), inside)
