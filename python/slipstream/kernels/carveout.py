"""How a multiprocessor divides its memory between shared memory and L1 cache while a kernel of ours runs.

It matters twice, as whole decode steps on an H200 have shown. Weights that travel into registers take room in the cache
while they are on their way: with all of the memory as shared memory the products of one row take a quarter longer than
with none of it. And a multiprocessor must be empty before it can divide its memory anew: the next kernel then cannot
start there early. The driver's own choice keeps what the kernel before had, if that suffices, so that one kernel with
much shared memory slows down those after it.
"""

import ctypes
from functools import cache
from typing import Any, Final

import triton

SHARED_PERCENT: Final = {"_gemv": 0}  # by a kernel's name; as little as it needs
SHARED_PERCENT_OF_OTHERS: Final = 70  # 164 of 228 KiB: four programs of attention for few rows
_CARVEOUT: Final = 9  # CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT of the CUDA driver API


@cache
def prefer_carveouts() -> None:
    """From now on every Triton kernel that this process loads onto a GPU asks for its share."""
    triton.knobs.runtime.kernel_load_end_hook.add(_prefer_carveout)


def shared_percent(name: str) -> int:
    """What the kernel of this name asks for, in percent of the most shared memory that there can be.

    >>> shared_percent("_gemv"), shared_percent("_attend")
    (0, 70)
    """
    return SHARED_PERCENT.get(name, SHARED_PERCENT_OF_OTHERS)


def _prefer_carveout(module: object, function: int, name: str, *_: Any) -> None:
    """A hook of Triton's: `function` is the CUfunction."""
    status = _driver().cuFuncSetAttribute(ctypes.c_void_p(function), _CARVEOUT, shared_percent(name))
    if status:
        raise RuntimeError(f"cuFuncSetAttribute for the shared memory of {name}: CUDA driver error {status}")


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
