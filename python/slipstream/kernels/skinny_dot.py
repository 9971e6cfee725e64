"""Products of up to 64 rows on the tensor cores: weights flow through shared memory, tile after tile.

The weights are the wide operand, the activations, padded to 8, 16, 32 or 64 rows, the narrow one. Tiles are fetched by
the threads, or by the tensor memory accelerator (CUDA C++ Programming Guide, "Tensor Memory Access"), which takes none
of their time and no registers. Where there are too few blocks of outputs to keep all multiprocessors busy, several
programs share a block's columns; the last one to finish adds up what they have, always in the order of the columns.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from slipstream.kernels.launch import launch_options, let_next_start, wait_for_inputs
from slipstream.kernels.skinny_configs import SkinnyConfig
from slipstream.kernels.skinny_tiles import load_weights, prefetch_weights, silu_product

MAX_SPLIT_BLOCKS = 65536  # blocks of outputs whose columns can be shared


def launch_dot(
    x: Tensor,
    weight: Tensor,
    config: SkinnyConfig,
    delta: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    gate_up: bool = False,
) -> tuple[Tensor, Tensor]:
    """(the product [M, N], or [M, N / 2] of gate and up; h [M, K]): see skinny.py. Without a norm_weight, h is x."""
    num_rows, k = x.shape
    parts = 2 if gate_up else 1
    outputs = weight.shape[0] // parts
    block_m = 8 if num_rows <= 8 else triton.next_power_of_2(num_rows)
    blocks = triton.cdiv(outputs, config.block_n)
    split_k = min(config.split_k, triton.cdiv(k, config.block_k))
    y = torch.empty((num_rows, outputs), dtype=x.dtype, device=x.device)
    h = x if delta is None else torch.empty_like(x)
    descriptor = None
    if config.kind == "tma":
        descriptor = TensorDescriptor.from_tensor(weight, [config.block_n, config.block_k])
    sums = squares = counters = None
    if split_k > 1:
        assert blocks <= MAX_SPLIT_BLOCKS, f"{blocks} blocks of outputs: at most {MAX_SPLIT_BLOCKS} with split_k"
        shape = (split_k, parts, blocks * config.block_n, block_m)
        sums = torch.empty(shape, dtype=torch.float32, device=x.device)
        squares = torch.empty((split_k, blocks, block_m), dtype=torch.float32, device=x.device)
        counters = _counters(x.device)
    _dot[(blocks, split_k)](
        x,
        delta,
        norm_weight,
        weight,
        descriptor,
        y,
        h,
        sums,
        squares,
        counters,
        num_rows,
        eps,
        OUTPUTS=outputs,
        K=k,
        GATE_UP=gate_up,
        BLOCK_M=block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        SPLIT_K=split_k,
        STAGES=config.num_stages,
        AHEAD=triton.next_power_of_2(config.num_stages) * config.block_k if config.prefetch else 0,
        num_warps=config.num_warps,
        **launch_options(x.device),
    )
    return y, h


@cache
def _counters(device: torch.device) -> Tensor:
    """How many programs have finished their share of each block; the last one sets it back to 0. One buffer is enough,
    since kernels that use it come one after the other in one stream.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("run the product once before it is captured in a CUDA graph")
    return torch.zeros(MAX_SPLIT_BLOCKS, dtype=torch.int32, device=device)


@triton.jit(do_not_specialize=["num_rows"])
def _dot(  # type: ignore[no-untyped-def]
    x,
    delta,
    norm_weight,
    weight,
    descriptor,  # of tiles of the weight, or None
    y,
    h,
    sums,  # fp32 [SPLIT_K, 1 or 2, outputs padded to blocks, BLOCK_M]
    squares,  # fp32 [SPLIT_K, blocks, BLOCK_M]
    counters,
    num_rows,
    eps,
    OUTPUTS: tl.constexpr,
    K: tl.constexpr,
    GATE_UP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    STAGES: tl.constexpr,
    AHEAD: tl.constexpr,  # columns that the L2 cache fetches before the inputs are ready
    PDL: tl.constexpr,
):
    """One program for each block of outputs and each share of the columns."""
    let_next_start(PDL)
    block, split = tl.program_id(0), tl.program_id(1)
    NUM_TILES: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    SHARE: tl.constexpr = (NUM_TILES + SPLIT_K - 1) // SPLIT_K
    first = split * SHARE
    n = tl.minimum(block * BLOCK_N + tl.arange(0, BLOCK_N), OUTPUTS - 1)
    rows = weight + n.to(tl.int64)[:, None] * K
    up_rows = rows + (OUTPUTS * K if GATE_UP else 0)
    if AHEAD > 0:
        prefetch_weights(rows, first * BLOCK_K, AHEAD, K, PDL)
        if GATE_UP:
            prefetch_weights(up_rows, first * BLOCK_K, AHEAD, K, PDL)
    wait_for_inputs(PDL)
    m = tl.arange(0, BLOCK_M)[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    up_total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    square = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for t in tl.range(first, tl.minimum(first + SHARE, NUM_TILES), num_stages=STAGES):
        k = t * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
        inside = (m < num_rows) & (k < K)
        tile = _load_tile(rows, descriptor, block * BLOCK_N, t, K, BLOCK_K)
        values = tl.load(x + m * K + k, inside, other=0.0)
        if delta is not None:
            change = tl.load(delta + m * K + k, inside, other=0.0)
            values = (values.to(tl.float32) + change.to(tl.float32)).to(values.dtype)
            mine = k < tl.where(t % tl.num_programs(0) == block, K, 0)
            tl.store(h + m * K + k, values, (m < num_rows) & mine)
        if norm_weight is not None:
            wide = values.to(tl.float32)
            square += wide * wide
            values = (wide * tl.load(norm_weight + k, k < K, other=0.0).to(tl.float32)).to(values.dtype)
        values = tl.trans(values)
        total = tl.dot(tile, values, total, input_precision="ieee")
        if GATE_UP:
            up_tile = _load_tile(up_rows, descriptor, OUTPUTS + block * BLOCK_N, t, K, BLOCK_K)
            up_total = tl.dot(up_tile, values, up_total, input_precision="ieee")
    square_sum = tl.sum(square, 1)
    if SPLIT_K == 1:
        _store_outputs(
            total, up_total, square_sum, y, block, num_rows, eps, norm_weight is not None, OUTPUTS, K, GATE_UP
        )
    else:
        PARTS: tl.constexpr = 2 if GATE_UP else 1
        PADDED: tl.constexpr = (OUTPUTS + BLOCK_N - 1) // BLOCK_N * BLOCK_N
        STRIDE: tl.constexpr = PARTS * PADDED * BLOCK_M
        here = sums + (block * BLOCK_N + tl.arange(0, BLOCK_N))[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        here_squares = squares + block * BLOCK_M + tl.arange(0, BLOCK_M)
        square_stride = tl.num_programs(0) * BLOCK_M
        tl.store(here + split * STRIDE, total)
        if GATE_UP:
            tl.store(here + split * STRIDE + PADDED * BLOCK_M, up_total)
        if norm_weight is not None:
            tl.store(here_squares + split * square_stride, square_sum)
        tl.debug_barrier()  # all threads have stored before one of them tells so
        if tl.atomic_add(counters + block, 1, sem="acq_rel") == SPLIT_K - 1:
            total = _add_splits(here, STRIDE, SPLIT_K)
            if GATE_UP:
                up_total = _add_splits(here + PADDED * BLOCK_M, STRIDE, SPLIT_K)
            if norm_weight is not None:
                square_sum = _add_splits(here_squares, square_stride, SPLIT_K)
            _store_outputs(
                total, up_total, square_sum, y, block, num_rows, eps, norm_weight is not None, OUTPUTS, K, GATE_UP
            )
            tl.store(counters + block, 0)


@triton.jit
def _load_tile(  # type: ignore[no-untyped-def]
    rows, descriptor, first_row, tile, K: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Columns tile * BLOCK_K and after, 0 past the end, of the rows from `first_row` on. What a descriptor brings of
    rows past the block's outputs is computed for nobody.
    """
    if descriptor is None:
        return load_weights(rows, tile, K, BLOCK_K)
    else:
        return descriptor.load([first_row, tile * BLOCK_K])


@triton.jit
def _add_splits(here, stride, SPLIT_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """What the programs of a block stored, added in their order whichever came last. The L1 cache may be stale."""
    total = tl.load(here, cache_modifier=".cg")
    for split in tl.static_range(1, SPLIT_K):
        total += tl.load(here + split * stride, cache_modifier=".cg")
    return total


@triton.jit
def _store_outputs(  # type: ignore[no-untyped-def]
    total,  # fp32 [BLOCK_N, BLOCK_M]
    up_total,
    square_sum,  # fp32 [BLOCK_M]
    y,
    block,
    num_rows,
    eps,
    NORM: tl.constexpr,
    OUTPUTS: tl.constexpr,
    K: tl.constexpr,
    GATE_UP: tl.constexpr,
):
    """The sums divided by the root mean square of h, gated, and rounded once."""
    if NORM:
        scale = tl.rsqrt(square_sum / K + eps)[None, :]
        total *= scale
        up_total *= scale
    if GATE_UP:
        total = silu_product(total, up_total)
    n = block * total.shape[0] + tl.arange(0, total.shape[0])[:, None]
    m = tl.arange(0, total.shape[1])[None, :]
    tl.store(y + m * OUTPUTS + n, total.to(y.dtype.element_ty), (m < num_rows) & (n < OUTPUTS))
