"""The candidate tokens between a slot's recorded history and a row: for penalties, they count as generated."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Paths:
    """For each row, tokens and whether they lie on its path."""

    token_ids: Tensor  # int64 [rows, N]
    counted: Tensor  # bool [rows, N]
