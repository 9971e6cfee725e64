"""One rule draws every token: argmax(processed logits / temperature + keyed Gumbel noise).

Order: repetition, frequency and presence penalties; logit_bias; min_new_tokens; temperature; top-k; top-p; min-p; draw.
Temperature 0 is the same rule without noise; filters never remove the likeliest token and are skipped. Of equal maxima
the first id wins. Rows never influence each other.
"""

from collections.abc import Sequence

import torch

from slipstream.errors import RequestError
from slipstream.messages.sampling import SamplingParams
from slipstream.sampling.bias import LogitBias
from slipstream.sampling.filters import Filters
from slipstream.sampling.min_tokens import MinTokens
from slipstream.sampling.noise import Noise
from slipstream.sampling.penalties import Penalties
from slipstream.sampling.rows import rows_using

LEAST_TEMPERATURE = torch.finfo(torch.float32).tiny  # below it fp32 cannot divide by the temperature: greedy


class Sampler:
    """Sampling state of all slots. A slot is added before its rows are drawn; adding it again starts it afresh."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self._device = device
        self._temperature = torch.ones(num_slots, dtype=torch.float32, device=device)
        self._random: set[int] = set()  # slots with a temperature above 0
        self._noise = Noise(num_slots, vocab_size, device)
        self._penalties = Penalties(num_slots, vocab_size, device)
        self._bias = LogitBias(vocab_size, device)
        self._min_tokens = MinTokens(vocab_size, device)
        self._filters = Filters(num_slots, vocab_size, device)

    def add(self, slot: int, params: SamplingParams, token_ids: Sequence[int], prompt_len: int) -> None:
        """Take a request into a slot. token_ids: its prompt and, after a preemption, what was generated before.

        Raises RequestError, and leaves the slot empty, if the request names ids outside the vocabulary.
        """
        self.release(slot)
        try:
            self._penalties.add(slot, params, token_ids, prompt_len)
            self._bias.add(slot, params)
        except RequestError:
            self.release(slot)
            raise
        self._min_tokens.add(slot, params, prompt_len)
        if params.temperature >= LEAST_TEMPERATURE:
            self._temperature[slot] = params.temperature
            self._random.add(slot)
            self._noise.add(slot, params.seed, params.choice)
            self._filters.add(slot, params)

    def release(self, slot: int) -> None:
        """Forget a slot; nothing happens if it is empty."""
        self._random.discard(slot)
        self._noise.release(slot)
        self._penalties.release(slot)
        self._bias.release(slot)
        self._min_tokens.release(slot)
        self._filters.release(slot)

    def sample(self, logits: torch.Tensor, slots: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Draw one token for each row and record it for the penalties of its slot. Returns [rows] int64.

        logits: [rows, vocab] fp32, modified. positions: absolute position of each token to draw (prompt_len for the
        first generated one). Each slot occurs once: the rows of a path of candidates are for draw().
        """
        token_ids = self.draw(logits, slots, positions)
        self.record(slots, token_ids)
        return token_ids

    def draw(
        self,
        logits: torch.Tensor,
        slots: Sequence[int],
        positions: Sequence[int],
        paths: Sequence[Sequence[int]] | None = None,
    ) -> torch.Tensor:
        """Draw one token for each row, recording nothing. Returns [rows] int64; `logits` [rows, vocab] is modified.

        A slot may have several rows. paths: for each row, the candidate tokens between the slot's last recorded token
        and the row's position; penalties count them as generated.
        """
        self._penalties.apply(logits, slots, paths)
        self._bias.apply(logits, slots)
        self._min_tokens.apply(logits, slots, positions)
        rows = rows_using(slots, self._random)
        if len(rows) == len(slots) and rows:
            return self._draw_random(logits, slots, positions)
        token_ids = logits.argmax(dim=-1)
        if rows:
            random_slots, random_positions = [slots[row] for row in rows], [positions[row] for row in rows]
            token_ids[rows] = self._draw_random(logits[rows], random_slots, random_positions)
        return token_ids

    def record(self, slots: Sequence[int], token_ids: torch.Tensor) -> None:
        """Count generated tokens for penalties. token_ids: [rows] int64, one for each entry of `slots`."""
        self._penalties.record(slots, token_ids)

    def _draw_random(self, logits: torch.Tensor, slots: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        # Relative to the row's maximum: exact near it, and no temperature, however small, overflows.
        logits -= logits.amax(dim=-1, keepdim=True)
        logits /= self._temperature[torch.tensor(slots, device=self._device)][:, None]
        self._filters.apply(logits, slots)
        self._noise.apply(logits, slots, positions)
        return logits.argmax(dim=-1)
