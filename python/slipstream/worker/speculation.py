"""The speculator of a worker, and the slots that it follows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from slipstream.messages.to_worker import NewRequest
from slipstream.models.base import ImageRows
from slipstream.sampling.candidates import Candidates
from slipstream.speculative.base import BaseSpeculator, Committed
from slipstream.speculative.draft_model import DraftModelSpeculator
from slipstream.worker.outcome import Run


class Speculation:
    """Lets the speculator draft for the slots that it follows and tells it what has become of them.

    A speculator that reads hidden states follows the warm slots; any other follows all that may have drafts.
    """

    def __init__(self, speculator: BaseSpeculator) -> None:
        self._speculator = speculator
        self._limits: dict[int, int | None] = {}  # of the slots that are followed: most drafts in one step

    def add(self, new: NewRequest) -> None:
        """A request has entered its slot."""
        if new.warm or (not self._speculator.needs_hidden and new.sampling.max_draft_tokens != 0):
            self._limits[new.slot] = new.sampling.max_draft_tokens
            self._speculator.add(new.slot, new.token_ids[: new.num_cached + 1])

    def release(self, slot: int) -> None:
        """The slot is empty, or has gone cold."""
        if slot in self._limits:
            del self._limits[slot]
            self._speculator.release(slot)

    @property
    def speculator(self) -> BaseSpeculator:
        return self._speculator

    def assume_complete(self) -> None:
        """All rows that are committed have been drafted over by others: see speculative/device_chain.py."""
        assert isinstance(self._speculator, DraftModelSpeculator), "only a draft model is run by others"
        self._speculator.assume_complete(self._limits)

    def follows(self, slot: int) -> bool:
        return slot in self._limits

    def propose(self, slots: Sequence[int], depths: dict[int, int]) -> Candidates:
        """Drafts for the decode slots `slots`, in their order. A slot that is not followed has none."""
        wanted = [depths.get(slot, 0) if slot in self._limits else 0 for slot in slots]
        return self._speculator.propose(slots, wanted, [self._limits.get(slot) for slot in slots])

    def extend(self, runs: Sequence[Run], num_decode: int, hidden: Tensor, images: ImageRows | None) -> None:
        """Followed slots have got these rows: first those of `num_decode` decode slots, then those of chunks.

        `hidden` [T, D] has all rows of the step; `images` count the rows of the runs.
        """
        rows = [row for run in runs for row in run.rows]
        is_all = rows == list(range(len(hidden)))
        self._speculator.extend(
            Committed(
                slots=tuple(run.slot for run in runs),
                starts=tuple(run.start for run in runs),
                num_rows=tuple(len(run.rows) for run in runs),
                num_decode=num_decode,
                successors=torch.cat([run.successors for run in runs]),
                images=images,
                hidden=hidden if is_all else hidden.index_select(0, torch.tensor(rows, device=hidden.device)),
            )
        )
