"""Matrix products with weights that are not quantised."""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Linear:
    """y = x W^T with W [out, in], without bias. Several projections of one input may be fused into one W by rows.

    A plain class, not an nn.Module: a step of a small model spends as much time in Module.__call__ as in its products.
    """

    __slots__ = ("weight",)

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out]."""
        return F.linear(x, self.weight)


class PackedLinear:
    """The same product on a CPU with bf16 instructions, W kept in oneDNN's own order.

    F.linear gives the same bits, but reorders W inside every call: for one row that doubles the time. Only bf16: the
    fp32 order depends on the number of rows, and a call with another number of rows is a hundred times slower.
    """

    __slots__ = ("_packed", "_product")

    def __init__(self, weight: Tensor) -> None:
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self._product: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out]."""
        return self._product(x, self._packed, None, "none", [], "")


class LinearLayer(Protocol):
    """x [T, in] -> [T, out]."""

    def __call__(self, x: Tensor) -> Tensor: ...


def make_dense(weight: Tensor) -> LinearLayer:
    """The fastest product for where `weight` [out, in] lies and for its dtype. The result keeps a packed copy or
    `weight` itself, never both.
    """
    if weight.is_cuda:
        from slipstream.layers.skinny import SkinnyLinear  # only where there is a GPU: it needs triton

        return SkinnyLinear(weight)
    return PackedLinear(weight) if can_pack(weight.dtype, weight.device) else Linear(weight)


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether make_dense() makes a packed copy of such a weight."""
    has_bf16 = torch._C._has_mkldnn and torch.cpu._is_avx512_bf16_supported()
    return device.type == "cpu" and dtype == torch.bfloat16 and has_bf16
