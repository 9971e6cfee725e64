"""Small tables from the host to the device, without waiting for what the device is doing."""

from collections.abc import Sequence

import torch
from torch import Tensor

Values = Sequence[int | float | bool] | Sequence[Sequence[int | float | bool]]


def upload(values: Values, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of `values` on `device`."""
    return to_device(torch.tensor(values, dtype=dtype), device)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`; itself on the CPU.

    On a GPU it goes through pinned memory, which torch does not reuse before the copy is done: a copy from ordinary
    memory would wait until the device has done all its work.
    """
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def upload_into(target: Tensor, values: Tensor) -> None:
    """Overwrite `target` with `values` of the host, in the order of the device's work."""
    target.copy_(values.pin_memory() if target.is_cuda else values, non_blocking=True)
