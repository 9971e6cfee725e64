"""Small tables from the host to the device, without waiting for what the device is doing."""

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(values: Sequence[object] | Sequence[Sequence[object]], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of `values` on `device`. On a GPU they go through pinned memory, which torch does not reuse before the
    copy is done: a copy from ordinary memory would wait until the device has done all its work.
    """
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


def upload_into(target: Tensor, values: Sequence[object] | Sequence[Sequence[object]]) -> None:
    """Overwrite `target` with `values`, in the order of the device's work."""
    if target.is_cuda:
        target.copy_(torch.tensor(values, dtype=target.dtype, pin_memory=True), non_blocking=True)
    else:
        target.copy_(torch.tensor(values, dtype=target.dtype))
