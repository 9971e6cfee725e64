"""Matrix products on a GPU: our own kernels where they are faster than cuBLAS, which is with few rows."""

import torch.nn.functional as F
from torch import Tensor

from slipstream.kernels.activation import silu_and_mul
from slipstream.kernels.skinny import skinny_gate_up, skinny_linear, skinny_norm_gate_up, skinny_norm_linear
from slipstream.kernels.skinny_configs import skinny_config
from slipstream.layers.norm import RMSNorm


class SkinnyLinear:
    """See layers/dense.py, Linear."""

    __slots__ = ("weight",)

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out]."""
        weight = self.weight
        if skinny_config("linear", len(x), weight) is not None:
            return skinny_linear(x, weight)
        return F.linear(x, weight)


class NormedSkinnyLinear:
    """See NormedPart: a norm and a product, in one kernel where that is faster, which it is with few rows."""

    __slots__ = ("_linear", "_norm")

    def __init__(self, norm: RMSNorm, weight: Tensor) -> None:
        self._norm, self._linear = norm, SkinnyLinear(weight)

    def __call__(self, delta: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        weight, norm = self._linear.weight, self._norm
        if skinny_config("norm_linear", len(residual), weight) is not None:
            return skinny_norm_linear(delta, residual, norm.weight, norm.eps, weight)
        x, residual = norm.add(delta, residual)
        return self._linear(x), residual


class NormedSkinnySwiGLU:
    """See NormedPart and SwiGLU: a norm, gate and up projections and their product, as many of them in one kernel as
    is fastest with so many rows.
    """

    __slots__ = ("_down", "_gate_up", "_norm")

    def __init__(self, norm: RMSNorm, gate_up: Tensor, down: Tensor) -> None:
        self._norm, self._gate_up, self._down = norm, gate_up, SkinnyLinear(down)

    def __call__(self, delta: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        gate_up, norm = self._gate_up, self._norm
        if skinny_config("norm_gate_up", len(residual), gate_up) is not None:
            x, residual = skinny_norm_gate_up(delta, residual, norm.weight, norm.eps, gate_up)
        else:
            x, residual = norm.add(delta, residual)
            is_skinny = skinny_config("gate_up", len(x), gate_up) is not None
            x = skinny_gate_up(x, gate_up) if is_skinny else silu_and_mul(F.linear(x, gate_up))
        return self._down(x), residual
