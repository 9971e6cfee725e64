"""Small host values to the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(values: Sequence[int | float | bool], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`values` as a tensor [n] on `device`, without waiting for what the device does.

    A copy from ordinary memory would wait. From pinned memory it does not, and torch keeps the block until the copy is
    done.
    """
    return to_device(torch.tensor(values, dtype=dtype), device)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`, as upload() does it; itself on the CPU."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values
