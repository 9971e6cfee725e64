"""Root-mean-square norm."""

import torch
from torch import Tensor


class RMSNorm:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich, 2019), computed in fp32.

    Written out, because F.rms_norm takes up to a quarter longer on a CPU: vector_norm reads x once in its own dtype
    and sums in fp32.
    """

    __slots__ = ("_eps", "_inverse_size", "_weight")

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight = weight.float()
        self._eps = torch.full((), eps, dtype=torch.float32, device=weight.device)
        self._inverse_size = 1 / weight.shape[-1]

    def __call__(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        norm = torch.linalg.vector_norm(x, 2, -1, True, dtype=torch.float32)
        scale = torch.addcmul(self._eps, norm, norm, value=self._inverse_size).rsqrt_()
        return (x * scale).mul_(self._weight).to(x.dtype)
