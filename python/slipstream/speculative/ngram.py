"""Prompt lookup: drafts are what followed the last tokens where they occurred before in the same text. No model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.sampling.candidates import Candidates
from slipstream.speculative.base import BaseSpeculator, Committed
from slipstream.speculative.ngram_index import NgramIndex
from slipstream.speculative.parts import SpeculatorParts


class NgramSpeculator(BaseSpeculator):
    """One index of prompt and answer for each slot, on the host."""

    def __init__(self, parts: SpeculatorParts) -> None:
        drafts = parts.drafts
        if not drafts.shape.is_chain:
            raise ConfigError("n-gram drafts are chains; use --speculative-eagle-topk 1")
        if not 1 <= drafts.ngram_min <= drafts.ngram_max:
            raise ConfigError(
                f"the n-gram lengths must satisfy 1 <= min <= max, but min is {drafts.ngram_min} and max is "
                f"{drafts.ngram_max}"
            )
        self._lengths = (drafts.ngram_min, drafts.ngram_max)
        self._device, self._vocab_size = parts.device, parts.vocab_size
        self._needs_probs = drafts.rejection_sampling
        self._indices: dict[int, NgramIndex] = {}

    def add(self, slot: int, token_ids: Sequence[int]) -> None:
        assert slot not in self._indices, f"slot {slot} is followed already"
        self._indices[slot] = NgramIndex(*self._lengths)
        self._indices[slot].append(token_ids)

    def record(self, slot: int, token_ids: Sequence[int]) -> None:
        self._indices[slot].append(token_ids)

    def release(self, slot: int) -> None:
        self._indices.pop(slot, None)

    def extend(self, committed: Committed) -> None:
        """record() brings all that is looked up."""

    def propose(self, slots: Sequence[int], depths: Sequence[int]) -> Candidates:
        """See BaseSpeculator.propose. A slot whose last tokens are new in its text has no drafts."""
        drafts = [
            self._indices[slot].continuation(depth) if depth else [] for slot, depth in zip(slots, depths, strict=True)
        ]
        most = max(map(len, drafts), default=0)
        if not most:
            return Candidates.none(len(slots), self._device)
        padded = [draft + [0] * (most - len(draft)) for draft in drafts]
        token_ids = torch.tensor(padded, device=self._device)
        parents = torch.arange(most, device=self._device).expand(len(slots), -1)
        probs = self._one_hot(token_ids) if self._needs_probs else None
        return Candidates(tuple(map(len, drafts)), token_ids, parents, is_chain=True, draft_probs=probs)

    def _one_hot(self, token_ids: Tensor) -> Tensor:
        """fp32 [B, N, vocab]: each draft was certain."""
        probs = torch.zeros(*token_ids.shape, self._vocab_size, device=self._device)
        return probs.scatter_(2, token_ids.unsqueeze(2), 1.0)
