# mypy: disable-error-code="assignment,misc"
# (the tuples of a kernel grow while it is compiled)
"""Products of very few rows without tensor cores: weights go straight into registers.

A program owns some outputs and reads their rows of the weight tile by tile; for every row of the activations it keeps a
partial sum for each 8 columns of a tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from slipstream.kernels.launch import launch_options, let_next_start, wait_for_inputs
from slipstream.kernels.skinny_configs import MAX_GEMV_ROWS, SkinnyConfig
from slipstream.kernels.skinny_tiles import load_weights, prefetch_weights, silu_product


def launch_gemv(
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
    assert num_rows <= MAX_GEMV_ROWS, f"a gemv of {num_rows} rows: at most {MAX_GEMV_ROWS}"
    outputs = weight.shape[0] // (2 if gate_up else 1)
    y = torch.empty((num_rows, outputs), dtype=x.dtype, device=x.device)
    h = x if delta is None else torch.empty_like(x)
    num_tiles = triton.cdiv(k, config.block_k)
    stages = min(config.num_stages, num_tiles)
    _gemv[(triton.cdiv(outputs, config.block_n),)](
        x,
        delta,
        norm_weight,
        weight,
        y,
        h,
        eps,
        M=num_rows,
        OUTPUTS=outputs,
        K=k,
        GATE_UP=gate_up,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        STAGES=stages,
        AHEAD=triton.next_power_of_2(k - stages * config.block_k) if config.prefetch and stages < num_tiles else 0,
        num_warps=config.num_warps,
        **launch_options(x.device),
    )
    return y, h


@triton.jit
def _gemv(  # type: ignore[no-untyped-def]
    x,
    delta,
    norm_weight,
    weight,
    y,
    h,
    eps,
    M: tl.constexpr,
    OUTPUTS: tl.constexpr,
    K: tl.constexpr,
    GATE_UP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,  # tiles of weights on their way at any time, at most K / BLOCK_K
    AHEAD: tl.constexpr,  # columns that the L2 cache fetches beyond them before the inputs are ready
    PDL: tl.constexpr,
):
    """One program for each block of outputs. Of gate and up, rows lie in pairs: gate, up, gate, ..."""
    let_next_start(PDL)
    block = tl.program_id(0)
    NUM_TILES: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    ROWS: tl.constexpr = 2 * BLOCK_N if GATE_UP else BLOCK_N
    j = tl.arange(0, ROWS)
    n = tl.minimum(block * BLOCK_N + (j // 2 if GATE_UP else j), OUTPUTS - 1)
    if GATE_UP:
        n += j % 2 * OUTPUTS
    rows = weight + n.to(tl.int64)[:, None] * K
    tiles = ()
    for t in tl.static_range(STAGES):
        tiles = tiles + (load_weights(rows, t, K, BLOCK_K),)  # noqa: RUF005
    if AHEAD > 0:
        prefetch_weights(rows, STAGES * BLOCK_K, AHEAD, K, PDL)
    wait_for_inputs(PDL)
    sums = ()
    squares = ()
    for _ in tl.static_range(M):
        sums = sums + (tl.zeros((ROWS, BLOCK_K // 8), tl.float32),)  # noqa: RUF005
        squares = squares + (tl.zeros((1, BLOCK_K // 8), tl.float32),)  # noqa: RUF005
    for t in tl.range(0, NUM_TILES - STAGES, loop_unroll_factor=STAGES):
        tile = tiles[0]
        tiles = tiles[1:] + (load_weights(rows, t + STAGES, K, BLOCK_K),)  # noqa: RUF005
        sums, squares = _add_tile(sums, squares, tile, t, x, delta, norm_weight, h, M, ROWS, K, BLOCK_K)
    for s in tl.static_range(STAGES):
        t = NUM_TILES - STAGES + s
        sums, squares = _add_tile(sums, squares, tiles[s], t, x, delta, norm_weight, h, M, ROWS, K, BLOCK_K)
    _store_outputs(sums, squares, y, block, eps, M, norm_weight is not None, OUTPUTS, K, GATE_UP, BLOCK_N)


@triton.jit
def _add_tile(  # type: ignore[no-untyped-def]
    sums,  # for each row of x: fp32 [ROWS, BLOCK_K / 8]
    squares,  # for each row of x: fp32 [1, BLOCK_K / 8], of h
    tile,  # [ROWS, BLOCK_K]
    t,
    x,
    delta,
    norm_weight,
    h,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The sums with columns t * BLOCK_K and after; one program, another for each tile, writes these columns of h."""
    k = t * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    inside = k < K
    tile = tile.to(tl.float32)
    factors = 1.0
    if norm_weight is not None:
        factors = tl.load(norm_weight + k, inside, other=0.0).to(tl.float32)
    new_sums = ()
    new_squares = ()
    for m in tl.static_range(M):
        values = tl.load(x + m * K + k, inside, other=0.0)
        if delta is not None:
            change = tl.load(delta + m * K + k, inside, other=0.0)
            values = (values.to(tl.float32) + change.to(tl.float32)).to(values.dtype)
            tl.store(h + m * K + k, values, k < tl.where(t % tl.num_programs(0) == tl.program_id(0), K, 0))
        values = values.to(tl.float32)
        square = squares[m]
        if norm_weight is not None:
            square += tl.sum(tl.reshape(values * values, (1, BLOCK_K // 8, 8)), 2)
            values *= factors
        products = tl.reshape(values * tile, (ROWS, BLOCK_K // 8, 8))
        new_sums = new_sums + (sums[m] + tl.sum(products, 2),)  # noqa: RUF005
        new_squares = new_squares + (square,)  # noqa: RUF005
    return new_sums, new_squares


@triton.jit
def _store_outputs(  # type: ignore[no-untyped-def]
    sums,
    squares,
    y,
    block,
    eps,
    M: tl.constexpr,
    NORM: tl.constexpr,
    OUTPUTS: tl.constexpr,
    K: tl.constexpr,
    GATE_UP: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The sums added up, divided by the root mean square of h, gated, and rounded once."""
    total = _sum_columns(sums, M)
    if NORM:
        total *= tl.rsqrt(_sum_columns(squares, M) / K + eps)
    if GATE_UP:
        gate, up = tl.split(tl.permute(tl.reshape(total, (BLOCK_N, 2, total.shape[1])), (0, 2, 1)))
        total = silu_product(gate, up)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    m = tl.arange(0, total.shape[1])[None, :]
    tl.store(y + m * OUTPUTS + n, total.to(y.dtype.element_ty), (n < OUTPUTS) & (m < M))


@triton.jit
def _sum_columns(parts, M: tl.constexpr):  # type: ignore[no-untyped-def]
    """[rows, M padded to a power of two] from M times [rows, columns]: one exchange between threads serves all M."""
    if M == 1:
        together = tl.expand_dims(parts[0], 2)
    elif M == 2:
        together = tl.join(parts[0], parts[1])
    else:
        pairs = tl.join(tl.join(parts[0], parts[2]), tl.join(parts[1], parts[M - 1]))  # last: the lowest bit of m
        together = tl.reshape(pairs, (pairs.shape[0], pairs.shape[1], 4))
    return tl.sum(together, 1)
