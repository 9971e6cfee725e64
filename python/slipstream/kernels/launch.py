"""What all kernels have in common: how they are launched one right after the other.

With programmatic dependent launch (CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization") a
kernel's programs may start while the kernel before it still runs. A kernel allows that for its successor with
let_next_start(), and must call wait_for_inputs() before it reads what earlier kernels wrote, or writes what they read.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from slipstream.kernels.carveout import prefer_carveouts

IS_INTERPRETED: bool = triton.knobs.runtime.interpret


@cache
def has_dependent_launch(device: torch.device) -> bool:
    """Whether kernels on `device` may overlap: from Hopper on."""
    return device.type == "cuda" and not IS_INTERPRETED and torch.cuda.get_device_capability(device) >= (9, 0)


@cache
def launch_options(device: torch.device) -> dict[str, Any]:
    """Keyword arguments of every launch on `device`: the kernel's constant PDL, and the launch attribute with it. Where
    kernels overlap, they also agree on their multiprocessors' memory.
    """
    if not has_dependent_launch(device):
        return {"PDL": False}
    prefer_carveouts()
    return {"PDL": True, "launch_pdl": True}


@cache
def num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@triton.jit
def wait_for_inputs(PDL: tl.constexpr):  # type: ignore[no-untyped-def]
    """What the kernels before this one wrote is there from here on."""
    if PDL:
        tl.extra.cuda.gdc_wait()


@triton.jit
def let_next_start(PDL: tl.constexpr):  # type: ignore[no-untyped-def]
    """The next kernel's programs may be launched from here on."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
