"""The speculator of a worker, and the slots that it follows."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from slipstream.messages.to_worker import NewRequest, PrefillChunk
from slipstream.models.base import ImageRows
from slipstream.sampling.candidates import Candidates
from slipstream.speculative.base import BaseSpeculator, Committed
from slipstream.worker.outcome import Run

ShiftedImages = Callable[[int, Sequence[PrefillChunk]], ImageRows | None]


class Drafting:
    """Lets the speculator draft for the slots that it follows and tells it what has become of them.

    A speculator that reads hidden states follows the warm slots; any other follows all that may have drafts.
    """

    def __init__(self, speculator: BaseSpeculator) -> None:
        self._speculator = speculator
        self._followed: set[int] = set()

    def add(self, new: NewRequest) -> None:
        """A request has entered its slot."""
        if new.warm or (not self._speculator.needs_hidden and new.sampling.max_draft_tokens != 0):
            self._followed.add(new.slot)
            self._speculator.add(new.slot, new.token_ids)

    def release(self, slot: int) -> None:
        """The slot is empty, or has gone cold."""
        if slot in self._followed:
            self._followed.remove(slot)
            self._speculator.release(slot)

    def propose(self, slots: Sequence[int], depths: dict[int, int]) -> Candidates:
        """Drafts for the decode slots `slots`, in their order. A slot that is not followed has none."""
        return self._speculator.propose(slots, [depths.get(slot, 0) if slot in self._followed else 0 for slot in slots])

    def take(
        self,
        decode: Sequence[Run],
        chunks: Sequence[PrefillChunk],
        first_chunk_row: int,
        prompts: dict[int, Tensor],
        sampled: dict[int, int],
        hidden: Tensor,
        images: ShiftedImages,
    ) -> None:
        """One step is over. `decode` are the runs that decode slots have committed; the rows of `chunks` begin at row
        `first_chunk_row` of the target's `hidden` [T, D]. `sampled` has the first token after each last chunk.
        """
        decode = [run for run in decode if run.slot in self._followed]
        for run in decode:
            self._speculator.record(run.slot, run.token_ids)
        for slot, token_id in sampled.items():
            if slot in self._followed:
                self._speculator.record(slot, [token_id])
        if self._speculator.needs_hidden:
            self._extend(decode, chunks, first_chunk_row, prompts, sampled, hidden, images)

    def _extend(
        self,
        decode: Sequence[Run],
        chunks: Sequence[PrefillChunk],
        first_chunk_row: int,
        prompts: dict[int, Tensor],
        sampled: dict[int, int],
        hidden: Tensor,
        images: ShiftedImages,
    ) -> None:
        rows = [row for run in decode for row in run.rows]
        num_decode_rows = len(rows)
        successors = [hidden.new_tensor([token for run in decode for token in run.token_ids], dtype=torch.int64)]
        kept: list[PrefillChunk] = []
        for chunk in chunks:
            if chunk.slot in self._followed and (not chunk.last or chunk.slot in sampled):
                kept.append(chunk)
                rows.extend(range(first_chunk_row, first_chunk_row + chunk.length))
                successors.append(prompts[chunk.slot][chunk.start + 1 : chunk.start + chunk.length + 1])
                if chunk.last:
                    successors.append(hidden.new_tensor([sampled[chunk.slot]], dtype=torch.int64))
            first_chunk_row += chunk.length
        if not rows:
            return
        whole = len(rows) == len(hidden) and num_decode_rows == 0  # one prompt, or several, and nothing else
        self._speculator.extend(
            Committed(
                slots=(*(run.slot for run in decode), *(chunk.slot for chunk in kept)),
                starts=(*(run.start for run in decode), *(chunk.start for chunk in kept)),
                num_rows=(*(len(run.rows) for run in decode), *(chunk.length for chunk in kept)),
                num_decode=len(decode),
                successors=torch.cat(successors),
                images=images(num_decode_rows, kept),
                hidden=hidden if whole else hidden.index_select(0, torch.tensor(rows, device=hidden.device)),
            )
        )
