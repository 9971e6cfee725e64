"""Prompt lookup: drafts are what followed the last tokens where they occurred before in the same text. No model."""

from collections.abc import Sequence
from itertools import islice

import torch

from slipstream.sampling.candidates import Candidates
from slipstream.speculative.base import BaseSpeculator, Committed
from slipstream.speculative.ngram_index import NgramIndex
from slipstream.speculative.parts import SpeculatorParts


class NgramSpeculator(BaseSpeculator):
    """One index of prompt and answer for each slot, on the host."""

    def __init__(self, parts: SpeculatorParts) -> None:
        drafts = parts.drafts
        assert drafts.shape.is_chain and 1 <= drafts.ngram_min <= drafts.ngram_max, drafts
        self._lengths = (drafts.ngram_min, drafts.ngram_max)
        self._device = parts.device
        self._indices: dict[int, NgramIndex] = {}

    def add(self, slot: int, token_ids: Sequence[int]) -> None:
        assert slot not in self._indices, f"slot {slot} is followed already"
        self._indices[slot] = NgramIndex(*self._lengths)
        self._indices[slot].append(token_ids)

    def extend(self, committed: Committed) -> None:
        token_ids = iter(committed.successors.tolist())
        for slot, count in zip(committed.slots, committed.num_rows, strict=True):
            self._indices[slot].append(islice(token_ids, count))

    def release(self, slot: int) -> None:
        self._indices.pop(slot, None)

    def propose(
        self, slots: Sequence[int], depths: Sequence[int], limits: Sequence[int | None] | None = None
    ) -> Candidates:
        """See BaseSpeculator.propose. A slot whose last tokens are new in its text has no drafts."""
        drafts = [
            self._indices[slot].continuation(depth) if depth else [] for slot, depth in zip(slots, depths, strict=True)
        ]
        most = max(map(len, drafts), default=0)
        if not most:
            return Candidates.none(len(slots), self._device)
        padded = [draft + [0] * (most - len(draft)) for draft in drafts]
        return Candidates.chain(tuple(map(len, drafts)), torch.tensor(padded, device=self._device))
