# mypy: disable-error-code="assignment,misc"
# (the tuples of a kernel grow while it is compiled)
"""Products of up to 32 rows on the tensor cores whose operands go straight into registers.

An mma of 16 rows of weights and 8 of activations (PTX ISA, "Matrix Fragments for mma.m16n8k16") wants of each row four
values from a thread: columns 2 t, 2 t + 1, 2 t + 8 and 2 t + 9, where t is the thread's place in a group of four. A sum
may take its columns in any order. So thread t reads columns 8 t to 8 t + 7 of 32, 16 bytes at once, and gives the first
four values to one mma and the others to the next, for weights and activations alike: no value changes threads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from slipstream.kernels.launch import launch_options, let_next_start, wait_for_inputs
from slipstream.kernels.skinny_configs import MMA_COLUMNS, SkinnyConfig
from slipstream.kernels.skinny_tiles import prefetch_weights, silu_product


def launch_mma(x: Tensor, weight: Tensor, config: SkinnyConfig, gate_up: bool = False) -> Tensor:
    """The product [M, N], or [M, N / 2] of gate and up: see skinny.py."""
    num_rows, k = x.shape
    parts = 2 if gate_up else 1
    outputs = weight.shape[0] // parts
    weight_rows = parts * config.block_n
    assert weight_rows >= 16, f"{config} with {weight_rows} rows of weights: an mma takes 16"
    y = torch.empty((num_rows, outputs), dtype=x.dtype, device=x.device)
    stages = min(config.num_stages, triton.cdiv(k, config.block_k))
    _mma[(triton.cdiv(outputs, config.block_n),)](
        x,
        weight,
        y,
        num_rows,
        OUTPUTS=outputs,
        K=k,
        PARTS=parts,
        BLOCK_M=max(8, triton.next_power_of_2(num_rows)),
        BLOCK_N=config.block_n,
        CHUNKS=config.block_k // (MMA_COLUMNS * config.num_warps),
        WARPS=config.num_warps,
        STAGES=stages,
        AHEAD=triton.next_power_of_2(stages) * config.block_k if config.prefetch else 0,
        PACKED=x.dtype.itemsize == 2 and k % 2 == 0,
        num_warps=config.num_warps,
        num_stages=1,  # the kernel itself reads ahead
        **launch_options(x.device),
    )
    return y


@triton.jit(do_not_specialize=["num_rows"])
def _mma(  # type: ignore[no-untyped-def]
    x,
    weight,
    y,
    num_rows,
    OUTPUTS: tl.constexpr,
    K: tl.constexpr,
    PARTS: tl.constexpr,  # 2: gate and up
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNKS: tl.constexpr,  # of 32 columns that a warp takes of a tile
    WARPS: tl.constexpr,
    STAGES: tl.constexpr,  # tiles of weights on their way at any time, at most K / the columns of a tile
    AHEAD: tl.constexpr,  # columns that the L2 cache fetches beyond them before the inputs are ready
    PACKED: tl.constexpr,  # values travel in pairs, as int32: one by one, each would take a register
    PDL: tl.constexpr,
):
    """One program for each block of outputs; its warps share the columns of a tile.

    A tile lies as [eights of rows * CHUNKS * WARPS * 8 rows, 32 columns]: the threads of a warp have 8 rows of 4
    threads, and what else a thread has are registers. Of gate and up, eights lie in pairs: gate, up, gate, ...
    """
    let_next_start(PDL)
    block = tl.program_id(0)
    NUM_TILES: tl.constexpr = (K + CHUNKS * WARPS * 32 - 1) // (CHUNKS * WARPS * 32)
    ROWS: tl.constexpr = PARTS * BLOCK_N
    rows = weight + _weight_row(_row_of_line(ROWS, CHUNKS, WARPS), block, OUTPUTS, PARTS, BLOCK_N) * K
    tiles = ()
    for t in tl.static_range(STAGES):
        tiles = tiles + (_load_tile(rows, None, t, "evict_first", K, CHUNKS, WARPS, PACKED),)  # noqa: RUF005
    if AHEAD > 0:
        own_rows = _weight_row(tl.arange(0, ROWS)[:, None], block, OUTPUTS, PARTS, BLOCK_N)
        prefetch_weights(weight + own_rows * K, STAGES * CHUNKS * WARPS * 32, AHEAD, K, PDL)
    m = _row_of_line(BLOCK_M, CHUNKS, WARPS)
    x_rows, inside = x + m * K, m < num_rows
    wait_for_inputs(PDL)
    total = tl.zeros((WARPS, ROWS, BLOCK_M), tl.float32)
    values = _load_tile(x_rows, inside, 0, "", K, CHUNKS, WARPS, PACKED)
    for t in tl.range(0, NUM_TILES - STAGES, loop_unroll_factor=STAGES):
        now = values
        values = _load_tile(x_rows, inside, t + 1, "", K, CHUNKS, WARPS, PACKED)
        total = _add_tile(total, tiles[0], now, x.dtype.element_ty, CHUNKS, PACKED)
        tiles = tiles[1:] + (_load_tile(rows, None, t + STAGES, "evict_first", K, CHUNKS, WARPS, PACKED),)  # noqa: RUF005
    for s in tl.static_range(STAGES):
        now = values
        if s + 1 < STAGES:
            values = _load_tile(x_rows, inside, NUM_TILES - STAGES + s + 1, "", K, CHUNKS, WARPS, PACKED)
        total = _add_tile(total, tiles[s], now, x.dtype.element_ty, CHUNKS, PACKED)
    total = tl.sum(total, 0)
    if PARTS == 2:
        gate, up = tl.split(tl.permute(tl.reshape(total, (BLOCK_N // 8, 2, 8, BLOCK_M)), (0, 2, 3, 1)))
        total = tl.reshape(silu_product(gate, up), (BLOCK_N, BLOCK_M))
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    m = tl.arange(0, BLOCK_M)[None, :]
    tl.store(y + m * OUTPUTS + n, total.to(y.dtype.element_ty), (m < num_rows) & (n < OUTPUTS))


@triton.jit
def _row_of_line(ROWS: tl.constexpr, CHUNKS: tl.constexpr, WARPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which row a line of a tile is part of: [ROWS * CHUNKS * WARPS, 1]."""
    line = tl.arange(0, ROWS * CHUNKS * WARPS)[:, None]
    return line // (8 * CHUNKS * WARPS) * 8 + line % 8


@triton.jit
def _weight_row(  # type: ignore[no-untyped-def]
    row, block, OUTPUTS: tl.constexpr, PARTS: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Which row of the weight a row of a block is, the last one where there are no more."""
    n = tl.minimum(block * BLOCK_N + row // (8 * PARTS) * 8 + row % 8, OUTPUTS - 1)
    return (n + row // 8 % PARTS * OUTPUTS).to(tl.int64)


@triton.jit
def _load_tile(  # type: ignore[no-untyped-def]
    rows,
    inside,  # which lines there are; None: all
    tile,
    EVICTION_POLICY: tl.constexpr,
    K: tl.constexpr,
    CHUNKS: tl.constexpr,
    WARPS: tl.constexpr,
    PACKED: tl.constexpr,
):
    """Columns of all lines, 0 past the end. A warp's chunks of columns are neighbours."""
    line = tl.arange(0, rows.shape[0])[:, None]
    first = ((tile * WARPS + line // 8 % WARPS) * CHUNKS + line // (8 * WARPS) % CHUNKS) * 32
    PER_LOAD: tl.constexpr = 2 if PACKED else 1
    END: tl.constexpr = K // PER_LOAD
    if PACKED:
        rows = rows.to(tl.pointer_type(tl.int32))
    k = first // PER_LOAD + tl.arange(0, 32 // PER_LOAD)[None, :]
    pointers = rows + k
    if K % (CHUNKS * WARPS * 32) == 0:
        if inside is None:
            return tl.load(pointers, eviction_policy=EVICTION_POLICY)
        else:
            return tl.load(pointers, inside, other=0, eviction_policy=EVICTION_POLICY)
    elif inside is None:
        return tl.load(pointers, k < END, other=0, eviction_policy=EVICTION_POLICY)
    else:
        return tl.load(pointers, inside & (k < END), other=0, eviction_policy=EVICTION_POLICY)


@triton.jit
def _add_tile(total, tile, values, dtype: tl.constexpr, CHUNKS: tl.constexpr, PACKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """fp32 [WARPS, rows of weights, rows of x]: the sums with a tile."""
    WARPS: tl.constexpr = total.shape[0]
    if PACKED:
        for half in tl.static_range(2):
            weights = _operand((tile >> 16 * half).to(tl.int16).to(dtype, bitcast=True), WARPS, CHUNKS)
            columns = _operand((values >> 16 * half).to(tl.int16).to(dtype, bitcast=True), WARPS, CHUNKS)
            total = tl.dot(weights, tl.permute(columns, (0, 2, 1)), total, input_precision="ieee")
    else:
        columns = tl.permute(_operand(values, WARPS, CHUNKS), (0, 2, 1))
        total = tl.dot(_operand(tile, WARPS, CHUNKS), columns, total, input_precision="ieee")
    return total


@triton.jit
def _operand(tile, WARPS: tl.constexpr, CHUNKS: tl.constexpr):  # type: ignore[no-untyped-def]
    """[WARPS, rows, columns] of a tile, with the columns in the order that leaves every value with its thread."""
    EIGHTS: tl.constexpr = tile.shape[0] // (CHUNKS * WARPS * 8)
    COLUMNS: tl.constexpr = tile.shape[1]
    tile = tl.reshape(tile, (EIGHTS, CHUNKS, WARPS, 8, 4, COLUMNS // 8, 2))
    return tl.reshape(tl.permute(tile, (2, 0, 3, 1, 5, 4, 6)), (WARPS, EIGHTS * 8, CHUNKS * COLUMNS))
