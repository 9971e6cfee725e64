"""Memory that the L2 cache is to fetch, without a wait: what a program may do before its inputs are ready."""

import triton
import triton.language as tl

SECTOR = tl.constexpr(32)  # bytes: the least that the L2 cache fetches


@triton.jit
def prefetch(pointers):  # type: ignore[no-untyped-def]
    """The sectors that `pointers` point into, one pointer or a tensor of them."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def prefetch_values(pointers, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """COUNT values from each of the `pointers` [N] on."""
    PER_SECTOR: tl.constexpr = SECTOR * 8 // pointers.dtype.element_ty.primitive_bitwidth
    SECTORS: tl.constexpr = triton.next_power_of_2((COUNT + PER_SECTOR - 1) // PER_SECTOR)
    offsets = tl.minimum(tl.arange(0, SECTORS) * PER_SECTOR, COUNT - 1)
    prefetch(pointers[:, None] + offsets[None, :])
