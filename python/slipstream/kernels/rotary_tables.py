"""Cosines and sines of a step's positions."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from slipstream.kernels.launch import IS_INTERPRETED, launch_options, let_next_start, wait_for_inputs

# Triton's own cosine on a GPU is the fast instruction, useless for large angles; the interpreter knows no libdevice.
_HAS_LIBDEVICE = tl.constexpr(not IS_INTERPRETED)
_BLOCK = 256


def rotary_tables(positions: Tensor, frequencies: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """(cos, sin) of positions[t] * frequencies[i], times `factor`: fp32 [T, 1, rotary_dim] each.

    `positions` is int64 [T], `frequencies` fp32 [rotary_dim] in radians per position, negated in the first half. As
    torch does, the position is rounded to fp32 and so is the angle; cos and sin of it are exact to 2 units in the last
    place however large it is.
    """
    rows, size = positions.shape[0], frequencies.shape[0]
    assert positions.is_contiguous() and positions.dtype == torch.int64
    assert frequencies.is_contiguous() and frequencies.dtype == torch.float32
    cos, sin = (torch.empty((rows, 1, size), dtype=torch.float32, device=positions.device) for _ in range(2))
    _rotary_tables[(triton.cdiv(rows * size, _BLOCK),)](
        positions,
        frequencies,
        factor,
        cos,
        sin,
        rows * size,
        SIZE=size,
        BLOCK=_BLOCK,
        num_warps=4,
        **launch_options(positions.device),
    )
    return cos, sin


def rotary_tables_reference(positions: Tensor, frequencies: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """See rotary_tables."""
    angles = positions.view(-1, 1, 1) * frequencies
    return angles.cos() * factor, angles.sin() * factor


@triton.jit(do_not_specialize=["factor", "count"], do_not_specialize_on_alignment=["positions"])
def _rotary_tables(  # type: ignore[no-untyped-def]
    positions, frequencies, factor, cos, sin, count, SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """One program for BLOCK of the `count` values of each table."""
    let_next_start(PDL)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    frequency = tl.load(frequencies + index % SIZE, inside, other=0.0)
    wait_for_inputs(PDL)
    angle = tl.load(positions + index // SIZE, inside, other=0).to(tl.float32) * frequency
    if _HAS_LIBDEVICE:
        tl.store(cos + index, libdevice.cos(angle) * factor, inside)
        tl.store(sin + index, libdevice.sin(angle) * factor, inside)
    else:
        tl.store(cos + index, tl.cos(angle) * factor, inside)
        tl.store(sin + index, tl.sin(angle) * factor, inside)
