"""Simulated acceptance, for benchmarks and tests: so many drafts stand, whatever the target drew.

The drafts that stand are the first children from the root on; if there are fewer than asked for, all of them. The text
that comes out is the draft's.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from slipstream.sampling.candidates import Candidates
from slipstream.sampling.verify import Way, descend


class Simulation:
    """How many drafts stand: by an acceptance length that is met on average, or by a pattern."""

    def __init__(self, mean_length: float | None, pattern: Sequence[int]) -> None:
        """mean_length: tokens of a verify step, with the bonus token. pattern: accepted drafts of a slot's verify steps
        in turn, over and over; it starts afresh when a request enters a slot. One of the two is given.
        """
        assert (mean_length is None) != (not pattern), "either a mean length or a pattern"
        assert mean_length is None or mean_length >= 1, f"{mean_length} tokens of a step, the bonus token among them"
        assert all(count >= 0 for count in pattern), pattern
        self._mean = None if mean_length is None else mean_length - 1.0  # drafts
        self._pattern = tuple(pattern)
        self._num_verified: dict[int, int] = {}

    @staticmethod
    def of(mean_length: float | None, pattern: Sequence[int]) -> "Simulation | None":
        """The simulation of these options, or None if neither is set."""
        return None if mean_length is None and not pattern else Simulation(mean_length, pattern)

    def release(self, slot: int) -> None:
        """Forget a slot; nothing happens if it is empty."""
        self._num_verified.pop(slot, None)

    def lengths(self, slots: Sequence[int], num_drafts: Sequence[int], coins: Tensor) -> Tensor:
        """int64 [B]: how many drafts shall stand in this step. coins: fp32 [B], uniform in (0, 1).

        A step is a verify step of the slots that have drafts in it.
        """
        if self._mean is not None:
            whole = math.floor(self._mean)
            return whole + (coins < self._mean - whole).long()
        wanted = []
        for slot, number in zip(slots, num_drafts, strict=True):
            steps = self._num_verified.get(slot, 0)
            wanted.append(self._pattern[steps % len(self._pattern)])
            if number:
                self._num_verified[slot] = steps + 1
        return torch.tensor(wanted, device=coins.device)


def first_children(candidates: Candidates) -> Way:
    """The way that goes to the first child of every node."""
    if candidates.is_chain:
        return descend(candidates, torch.ones_like(candidates.token_ids, dtype=torch.bool))
    parents = candidates.parents
    has_elder = (parents[:, :, None] == parents[:, None, :]).tril(-1).any(-1)
    return descend(candidates, ~has_elder)
