"""Seeded batches from the corpus arrays, cut on the training device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from embedded_training.tokens import BOS, TARGET_FLAG, TOKEN_MASK


@dataclass(frozen=True)
class Batch:
    """tokens and targets, int64 [rows, length]; a target of -1 does not count."""

    tokens: Tensor
    targets: Tensor


class Streams:
    """Rows of `length` tokens from one long array: each pass is cut at a new offset and taken in a new order."""

    def __init__(self, array: np.ndarray, length: int, rng: np.random.Generator, device: str) -> None:
        self._tokens = torch.from_numpy(array.view(np.int16)).to(device)
        self._length = length
        self._rng = rng
        self._starts: np.ndarray = np.empty(0, dtype=np.int64)

    def rows(self, count: int) -> Tensor:
        """int64 [count, length + 1] stored tokens; the first of each row is <s> whatever stood there."""
        if len(self._starts) < count:
            self._starts = np.concatenate([self._starts, self._new_pass()])
        starts, self._starts = self._starts[:count], self._starts[count:]
        index = torch.from_numpy(starts).to(self._tokens.device)[:, None]
        index = index + torch.arange(self._length + 1, device=self._tokens.device)
        rows = self._tokens[index].long()
        rows[:, 0] = BOS
        return rows

    def _new_pass(self) -> np.ndarray:
        offset = self._rng.integers(self._length)
        starts = np.arange(offset, len(self._tokens) - self._length - 1, self._length)
        return self._rng.permutation(starts)


class Rows:
    """Rows of a two-dimensional array, every pass in a new order."""

    def __init__(self, array: np.ndarray, rng: np.random.Generator, device: str) -> None:
        self._tokens = torch.from_numpy(array.view(np.int16)).to(device)
        self._rng = rng
        self._order: np.ndarray = np.empty(0, dtype=np.int64)

    def rows(self, count: int) -> Tensor:
        """int64 [count, width] stored tokens."""
        while len(self._order) < count:
            self._order = np.concatenate([self._order, self._rng.permutation(len(self._tokens))])
        chosen, self._order = self._order[:count], self._order[count:]
        return self._tokens[torch.from_numpy(chosen).to(self._tokens.device)].long()


def as_batch(rows: Tensor) -> Batch:
    """Stored rows [n, length + 1] -> inputs and next-token targets [n, length]."""
    tokens = rows & TOKEN_MASK
    flagged = (rows & TARGET_FLAG) != 0
    targets = torch.where(flagged[:, 1:], tokens[:, 1:], -1)
    return Batch(tokens[:, :-1].contiguous(), targets.contiguous())
