"""logit_bias: a number added to the logits of chosen tokens (OpenAI's API reference), after the penalties."""

from collections.abc import Sequence

import torch

from slipstream.errors import RequestError
from slipstream.layers.upload import upload
from slipstream.messages.sampling import SamplingParams
from slipstream.sampling.rows import index_entries, rows_using


class LogitBias:
    """Token ids and their biases on the device, for each slot that has any."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._biases: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # slot -> ids [n] int64, values [n] fp32

    def add(self, slot: int, params: SamplingParams) -> None:
        """Take the slot's biases. Raises RequestError if an id lies outside the vocabulary."""
        self.release(slot)
        if not params.logit_bias:
            return
        for token_id in params.logit_bias:
            if not 0 <= token_id < self._vocab_size:
                raise RequestError(
                    f"logit_bias names token id {token_id}; this model's ids are 0 to {self._vocab_size - 1}",
                    param="logit_bias",
                )
        ids = upload(list(params.logit_bias), torch.int64, self._device)
        values = upload(list(params.logit_bias.values()), torch.float32, self._device)
        self._biases[slot] = ids, values

    def release(self, slot: int) -> None:
        self._biases.pop(slot, None)

    def used_by(self, slots: Sequence[int]) -> bool:
        """Whether any of the slots has a bias."""
        return not self._biases.keys().isdisjoint(slots)

    def apply(self, logits: torch.Tensor, slots: Sequence[int]) -> None:
        """Add the biases. In place. logits: [rows, vocab] fp32."""
        if rows := rows_using(slots, self._biases):
            ids, values = zip(*(self._biases[slots[row]] for row in rows), strict=True)
            logits.index_put_(index_entries(rows, ids), torch.cat(values), accumulate=True)
