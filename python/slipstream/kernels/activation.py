"""The activation of SwiGLU (Shazeer, 2020) where a matrix product made gate and up side by side."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from slipstream.kernels.launch import launch_options, let_next_start, wait_for_inputs

FEW_ROWS = 64  # up to here smaller blocks use more of the device


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up: [T, 2 I], the gate's I columns first -> [T, I], contiguous.

    As F.silu(gate).mul_(up) rounds: silu(g) = g / (1 + exp(-g)) is computed in fp32 and rounded to the dtype, the
    product is rounded again.
    """
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    assert gate_up.is_contiguous() and gate_up.shape[1] == 2 * size, f"{tuple(gate_up.shape)}: [rows, 2 I] expected"
    out = torch.empty((rows, size), dtype=gate_up.dtype, device=gate_up.device)
    block = 1024 if rows <= FEW_ROWS else 2048
    _silu_and_mul[(rows, triton.cdiv(size, block))](
        gate_up, out, SIZE=size, BLOCK=block, num_warps=4, **launch_options(gate_up.device)
    )
    return out


def silu_and_mul_reference(gate_up: Tensor) -> Tensor:
    """See silu_and_mul."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


@triton.jit
def _silu_and_mul(gate_up, out, SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program for BLOCK columns of a row."""
    let_next_start(PDL)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < SIZE
    gates = gate_up + row * (2 * SIZE) + columns
    wait_for_inputs(PDL)
    gate = tl.load(gates, inside, other=0.0)
    up = tl.load(gates + SIZE, inside, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    tl.store(out + row * SIZE + columns, (silu.to(tl.float32) * up.to(tl.float32)).to(up.dtype), inside)
