"""What the kernels for products of few rows share: how they read weights [N, K], and the end of a gated product."""

import triton
import triton.language as tl

LINE = tl.constexpr(128)  # bytes of a line of the L2 cache


@triton.jit
def load_weights(rows, tile, K: tl.constexpr, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """Columns tile * BLOCK_K and after, 0 past the end. Each weight is read once in a step: nothing else leaves a cache
    for it.
    """
    k = tile * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    if K % BLOCK_K == 0:
        return tl.load(rows + k, eviction_policy="evict_first")
    else:
        return tl.load(rows + k, k < K, other=0.0, eviction_policy="evict_first")


@triton.jit
def prefetch_weights(  # type: ignore[no-untyped-def]
    rows, first, COLUMNS: tl.constexpr, K: tl.constexpr, PDL: tl.constexpr
):
    """The L2 cache fetches COLUMNS (a power of two) columns from `first` on, without a wait; nothing where kernels do
    not overlap.
    """
    if PDL:
        PER_LINE: tl.constexpr = LINE * 8 // rows.dtype.element_ty.primitive_bitwidth
        k = tl.minimum(first + tl.arange(0, max(COLUMNS // PER_LINE, 1)) * PER_LINE, K - 1)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
            "=r,l",
            [rows + k[None, :]],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def silu_product(gate, up):  # type: ignore[no-untyped-def]
    """silu(gate) * up in fp32."""
    return gate / (1 + tl.exp(-gate)) * up
