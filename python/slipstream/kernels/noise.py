"""The keyed Gumbel noise of sampling/noise.py, which says what it is and where it comes from, for kernels.

Bits are the same, bit for bit. Logarithms are those of libdevice on a GPU, as torch's are there, and numpy's in the
interpreter, so that noise may differ from torch's in the last place.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from slipstream.kernels.launch import IS_INTERPRETED

GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
MIX_2 = tl.constexpr(0x94D049BB133111EB)
LARGEST_UNIFORM = tl.constexpr(1.0 - 2.0**-24)

# Triton's own logarithm on a GPU is the fast instruction, useless near 1; the interpreter knows no libdevice.
_HAS_LIBDEVICE = tl.constexpr(not IS_INTERPRETED)


@triton.jit
def child_key(key, index):  # type: ignore[no-untyped-def]
    """Child `index` (any integer type) of `key` (int64 or uint64): uint64. They broadcast against each other."""
    bits = (index.to(tl.int64) + 1).to(tl.uint64) * GOLDEN + key.to(tl.uint64)
    bits = (bits ^ (bits >> 30)) * MIX_1
    bits = (bits ^ (bits >> 27)) * MIX_2
    return bits ^ (bits >> 31)


@triton.jit
def uniform(bits):  # type: ignore[no-untyped-def]
    """fp32 in [2**-33, 1 - 2**-24] from uint64 bits."""
    upper = (bits >> 32).to(tl.uint32).to(tl.float32)
    return tl.minimum((upper + 0.5) * 2.3283064365386963e-10, LARGEST_UNIFORM)  # 2**-32


@triton.jit
def log(x):  # type: ignore[no-untyped-def]
    """Natural logarithm of fp32 `x`, exact to the last places on a GPU as well."""
    if _HAS_LIBDEVICE:
        return libdevice.log(x)
    else:
        return tl.log(x)


@triton.jit
def gumbel(key, ids):  # type: ignore[no-untyped-def]
    """Standard Gumbel noise of vocabulary `ids` under the row key `key`: fp32."""
    u = uniform(child_key(key, ids))
    if _HAS_LIBDEVICE:
        exponential = -libdevice.log1p(-u)
    else:  # log1p by a logarithm: Goldberg, "What Every Computer Scientist Should Know ...", theorem 4
        rest = 1.0 - u
        exponential = tl.where(rest == 1.0, u, -tl.log(rest) * u / tl.where(rest == 1.0, 1.0, 1.0 - rest))
    return -log(exponential)
