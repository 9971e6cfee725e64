"""Rotary position embedding (Su et al., 2021) in the half-split layout: values i and i + head_dim / 2 form a pair."""

import torch
from torch import Tensor


class RotaryEmbedding:
    """Rotates queries and keys by angle position * theta^(-2i / head_dim) for pair i.

    Tables are fp32 [num_positions, 1, head_dim]: the cosine twice, and the sine once negated, so that a rotation is
    x * cos + swap_halves(x) * sin.
    """

    def __init__(self, head_dim: int, theta: float, num_positions: int, device: torch.device) -> None:
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        angles = torch.outer(torch.arange(num_positions, dtype=torch.float32, device=device), theta**-exponents)
        cos, sin = angles.cos(), angles.sin()
        self._cos = torch.cat((cos, cos), -1).unsqueeze(1)
        self._sin = torch.cat((-sin, sin), -1).unsqueeze(1)
        self._half = head_dim // 2

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin), each fp32 [T, 1, head_dim], of positions [T] int64; once for all layers of a step."""
        return self._cos.index_select(0, positions), self._sin.index_select(0, positions)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[T, heads, head_dim] -> the same shape and dtype; computed in fp32."""
        wide = x.float()
        return torch.addcmul(wide * cos, wide.roll(self._half, -1), sin).to(x.dtype)
