"""Matrix products with the weights of a checkpoint."""

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
        """[..., in] -> [..., out]."""
        return F.linear(x, self.weight)
