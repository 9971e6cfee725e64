"""Tensors in memory that somebody else owns."""

from typing import Any

import torch
from torch import Tensor


class _Bytes:
    """Device memory as the CUDA array interface (version 3, of Numba's documentation) describes it."""

    def __init__(self, tensor: Tensor) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": (tensor.numel() * tensor.element_size(),),
            "typestr": "|u1",
            "data": (tensor.data_ptr(), False),
            "version": 3,
        }


def borrowed(tensor: Tensor) -> Tensor:
    """The same values at the same address, but the memory is not kept for them.

    What one CUDA graph leaves for the next may be read so until a third is replayed: the graphs' pool gives the same
    memory to all of them, and keeps it as long as there are graphs.
    """
    assert tensor.is_contiguous(), "a view in bytes has no strides"
    if tensor.numel() == 0 or not tensor.is_cuda:
        return tensor
    return torch.as_tensor(_Bytes(tensor), device=tensor.device).view(tensor.dtype).view(tensor.shape)
