"""Root-mean-square norm."""

import torch.nn.functional as F
from torch import Tensor


class RMSNorm:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich, 2019).

    The statistics are computed in fp32 whatever the dtype of x.
    """

    __slots__ = ("eps", "shape", "weight")

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps
        self.shape = tuple(weight.shape)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return F.rms_norm(x, self.shape, self.weight, self.eps)
