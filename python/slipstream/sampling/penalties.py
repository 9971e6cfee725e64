"""Repetition, frequency and presence penalties.

Repetition (Keskar et al., CTRL, arXiv 1909.05858, section 4.1, in the form of transformers' processor of that name):
the logit of every token that occurs in the prompt or in the answer is divided by the penalty if positive, else
multiplied.
Frequency and presence (OpenAI's API reference), on tokens of the answer only, which occurred `count` times:
    logit -= count * frequency_penalty + (count > 0) * presence_penalty
Repetition comes first, so that what the other two subtract is not scaled by it.
"""

from collections.abc import Sequence

import torch

from slipstream.errors import RequestError
from slipstream.layers.upload import to_device
from slipstream.messages.sampling import SamplingParams
from slipstream.sampling.paths import Paths
from slipstream.sampling.rows import put_rows, rows_using, take_rows

IN_PROMPT = 1  # bit 0 of a history: the token occurs in the prompt
ONE_GENERATED = 2  # the bits above it count how often it was generated


def penalise(
    logits: torch.Tensor,
    history: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
) -> torch.Tensor:
    """The penalised logits, a new tensor [rows, vocab] fp32.

    logits: [rows, vocab] fp32. history: [rows, vocab] int32, IN_PROMPT + ONE_GENERATED * count.
    repetition, frequency, presence: [rows] fp32; 1, 0 and 0 are neutral, bit for bit.
    """
    factor = torch.where(history > 0, repetition[:, None], 1.0)
    logits = torch.where(logits < 0, logits * factor, logits / factor)
    counts = history // ONE_GENERATED
    logits -= counts * frequency[:, None]
    logits -= (counts > 0) * presence[:, None]
    return logits


class Penalties:
    """Penalties of each slot, and a history [vocab] int32 on the device for each slot that uses one.

    Histories live in rows of one tensor, which grows with the largest number of users at one time.
    """

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self._repetition = torch.ones(num_slots, dtype=torch.float32, device=device)
        self._frequency = torch.zeros(num_slots, dtype=torch.float32, device=device)
        self._presence = torch.zeros(num_slots, dtype=torch.float32, device=device)
        self._histories = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        self._history_row: dict[int, int] = {}  # slot -> row of _histories
        self._free_rows: list[int] = []

    def add(self, slot: int, params: SamplingParams, token_ids: Sequence[int], prompt_len: int) -> None:
        """Take the slot's penalties and build its history from prompt, token_ids[:prompt_len], and answer, the rest.

        Raises RequestError if a token id lies outside the vocabulary.
        """
        self.release(slot)
        if params.repetition_penalty == 1.0 and params.frequency_penalty == 0.0 and params.presence_penalty == 0.0:
            return
        history = self._history_of(token_ids, prompt_len)
        self._repetition[slot].fill_(params.repetition_penalty)
        self._frequency[slot].fill_(params.frequency_penalty)
        self._presence[slot].fill_(params.presence_penalty)
        if not self._free_rows:
            self._grow()
        row = self._history_row[slot] = self._free_rows.pop()
        self._histories[row] = history

    def release(self, slot: int) -> None:
        if (row := self._history_row.pop(slot, None)) is not None:
            self._free_rows.append(row)

    def used_by(self, slots: Sequence[int]) -> bool:
        """Whether any of the slots has penalties."""
        return not self._history_row.keys().isdisjoint(slots)

    def apply(self, logits: torch.Tensor, slots: Sequence[int], paths: Paths | None = None) -> None:
        """Penalise the rows whose slots use it. In place. logits: [rows, vocab] fp32.

        paths: for each row, the candidate tokens between the recorded history and the row's own position; they count as
        generated for this row alone.
        """
        if not (rows := rows_using(slots, self._history_row)):
            return
        users = [slots[row] for row in rows]
        histories = self._histories[[self._history_row[slot] for slot in users]]  # a copy
        if paths is not None:
            added = take_rows(paths.counted, rows).int() * ONE_GENERATED
            histories.scatter_add_(1, take_rows(paths.token_ids, rows), added)
        penalised = penalise(
            take_rows(logits, rows), histories, self._repetition[users], self._frequency[users], self._presence[users]
        )
        put_rows(logits, rows, penalised)

    def record(self, slots: Sequence[int], token_ids: torch.Tensor) -> None:
        """Count generated tokens. token_ids: [rows] int64, one for each entry of `slots`; repeats are allowed."""
        if rows := rows_using(slots, self._history_row):
            at = torch.tensor([self._history_row[slots[row]] for row in rows], device=self._histories.device)
            one = torch.tensor(ONE_GENERATED, dtype=torch.int32, device=self._histories.device)
            self._histories.index_put_((at, token_ids[rows]), one, accumulate=True)

    def _history_of(self, token_ids: Sequence[int], prompt_len: int) -> torch.Tensor:
        vocab_size = self._histories.shape[1]
        ids = torch.tensor(token_ids, dtype=torch.int64)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
            raise RequestError(
                f"token ids must lie in [0, {vocab_size}) for penalties; found {int(ids.min())} to {int(ids.max())}",
                param="prompt",
            )
        history = torch.bincount(ids[prompt_len:], minlength=vocab_size) * ONE_GENERATED
        history[ids[:prompt_len]] += IN_PROMPT
        return to_device(history.int(), self._histories.device)

    def _grow(self) -> None:
        old = self._histories
        extra = max(4, len(old))
        self._histories = torch.cat([old, old.new_zeros(extra, old.shape[1])])
        self._free_rows.extend(range(len(old), len(old) + extra))
