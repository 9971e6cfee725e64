"""A part of a decoder layer together with the norm before it, on the stream of residuals."""

from typing import Protocol

from torch import Tensor

from slipstream.layers.feed_forward import FeedForward
from slipstream.layers.norm import RMSNorm


class NormedPart(Protocol):
    """part(norm(residual + delta)), where `delta` [T, D] is what the part before has to add to the residual stream
    [T, D]; None before the first. So a sum and the norm after it can be one pass, or no pass of their own.
    """

    def __call__(self, delta: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        """-> (what this part gives, the new residual); the old one is not to be used again."""
        ...


class Normed:
    """A norm, then any part [T, D] -> [T, out]."""

    __slots__ = ("_norm", "_part")

    def __init__(self, norm: RMSNorm, part: FeedForward) -> None:
        self._norm, self._part = norm, part

    def __call__(self, delta: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        x, residual = self._norm.add(delta, residual)
        return self._part(x), residual
