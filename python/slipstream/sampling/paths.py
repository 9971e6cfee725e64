"""The candidate tokens between a slot's recorded history and a row: for penalties, they count as generated."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Paths:
    """For each row, tokens and whether they lie on its path."""

    token_ids: Tensor  # int64 [rows, N]
    counted: Tensor  # bool [rows, N]

    @staticmethod
    def whole(token_ids: Tensor) -> "Paths":
        """Paths that hold all of `token_ids` [rows, N] int64: those of a chain's last rows, all of one length."""
        return Paths(token_ids, torch.ones_like(token_ids, dtype=torch.bool))
