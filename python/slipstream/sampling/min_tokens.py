"""min_new_tokens: stop ids cannot be drawn before that many tokens were generated."""

from collections.abc import Sequence

import torch

from slipstream.layers.upload import upload
from slipstream.messages.sampling import SamplingParams
from slipstream.sampling.rows import index_entries, take_rows


class MinTokens:
    """For each slot that asks for it: the position from which stopping is allowed, and the stop ids on the device."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._masks: dict[int, tuple[int, torch.Tensor]] = {}  # slot -> position, ids [n] int64

    def add(self, slot: int, params: SamplingParams, prompt_len: int) -> None:
        """Take the slot's stop ids. Ids outside the vocabulary are left out: nothing can draw them."""
        self.release(slot)
        ids = sorted({i for i in params.stop_token_ids if 0 <= i < self._vocab_size})
        if params.min_new_tokens > 0 and ids:
            first = prompt_len + params.min_new_tokens
            self._masks[slot] = first, upload(ids, torch.int64, self._device)

    def release(self, slot: int) -> None:
        self._masks.pop(slot, None)

    def used_by(self, slots: Sequence[int]) -> bool:
        """Whether any of the slots has a minimal length."""
        return not self._masks.keys().isdisjoint(slots)

    def apply(self, logits: torch.Tensor, slots: Sequence[int], positions: Sequence[int]) -> None:
        """Mask the stop ids of rows that draw an early position. In place. logits: [rows, vocab] fp32.

        The token at `position` is generated token number position - prompt_len, from 0. A row in which nothing else can
        be drawn keeps its stop ids: an early end is an answer, an empty distribution is none.
        """
        if not self._masks:
            return
        rows, masks = [], []
        for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
            if (entry := self._masks.get(slot)) and position < entry[0]:
                rows.append(row)
                masks.append(entry[1])
        if rows:
            mask_unless_empty_(logits, rows, masks)


def mask_unless_empty_(logits: torch.Tensor, rows: Sequence[int], masks: Sequence[torch.Tensor]) -> None:
    """Set row rows[i] of `logits` [n, vocab] to -inf at masks[i] [m] int64, unless that leaves nothing above -inf.

    In place, without a look at the device. `rows` ascend.
    """
    entry, ids = index_entries(range(len(rows)), masks)
    at = torch.tensor(rows, device=logits.device)[entry]
    kept = logits[at, ids]
    logits[at, ids] = -torch.inf
    is_empty = take_rows(logits, rows).amax(dim=-1) == -torch.inf
    logits[at, ids] = torch.where(is_empty[entry], kept, -torch.inf)
