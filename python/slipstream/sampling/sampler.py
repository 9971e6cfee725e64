"""One rule draws every token: argmax(processed logits / temperature + keyed Gumbel noise).

Order: repetition, frequency and presence penalties; logit_bias; min_new_tokens; temperature; top-k; top-p; min-p; draw.
Temperature 0 is the same rule without noise; filters never remove the likeliest token and are skipped. Of equal maxima
the first id wins. Rows never influence each other.
"""

from collections.abc import Sequence

import torch

from slipstream.errors import RequestError
from slipstream.kernels.slot_tables import SlotTables
from slipstream.messages.sampling import SamplingParams
from slipstream.sampling.bias import LogitBias
from slipstream.sampling.filters import Filters
from slipstream.sampling.min_tokens import MinTokens
from slipstream.sampling.noise import Noise, Stream
from slipstream.sampling.paths import Paths
from slipstream.sampling.penalties import Penalties
from slipstream.sampling.rows import put_rows, rows_using, take_rows

LEAST_TEMPERATURE = torch.finfo(torch.float32).tiny  # below it fp32 cannot divide by the temperature: greedy


class Sampler:
    """Sampling state of all slots. A slot is added before its rows are drawn; adding it again starts it afresh."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device, rejection_sampling: bool = False) -> None:
        self.rejection_sampling = rejection_sampling  # how drafts are proposed and verified
        self._device = device
        self._temperature = torch.zeros(num_slots, dtype=torch.float32, device=device)  # 0: greedy
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
        self._noise.add(slot, params.seed, params.choice)
        if params.temperature >= LEAST_TEMPERATURE:
            self._temperature[slot].fill_(params.temperature)
            self._random.add(slot)
            self._filters.add(slot, params)

    def release(self, slot: int) -> None:
        """Forget a slot; nothing happens if it is empty."""
        if slot in self._random:
            self._random.remove(slot)
            self._temperature[slot].fill_(0.0)
        self._penalties.release(slot)
        self._bias.release(slot)
        self._min_tokens.release(slot)
        self._filters.release(slot)

    def tables(self) -> SlotTables:
        """The device's own tensors, which hold what add() and release() set; an empty slot is greedy."""
        filters = self._filters
        return SlotTables(self._temperature, self._noise.keys, filters.top_k, filters.top_p, filters.min_p)

    def is_plain(self, slots: Sequence[int]) -> bool:
        """Whether the tables say all there is to know of these slots: draws need no penalties, bias or minimal lengths,
        nor are drafts verified by rejection sampling.
        """
        features = (self._penalties, self._bias, self._min_tokens)
        return not self.rejection_sampling and not any(feature.used_by(slots) for feature in features)

    def draw(
        self, logits: torch.Tensor, slots: Sequence[int], positions: Sequence[int], paths: Paths | None = None
    ) -> torch.Tensor:
        """Draw one token for each row, recording nothing: the argmax of scores(). Returns [rows] int64."""
        return self.scores(logits, slots, positions, paths).argmax(dim=-1)

    def scores(
        self, logits: torch.Tensor, slots: Sequence[int], positions: Sequence[int], paths: Paths | None = None
    ) -> torch.Tensor:
        """What the rule takes the maximum of. Modifies and returns `logits` [rows, vocab] fp32.

        A slot may have several rows. paths: for each row, the candidate tokens between the slot's last recorded token
        and the row's position; penalties count them as generated.
        """
        rows = self._process_(logits, slots, positions, paths)
        self._add_noise_(logits, rows, slots, positions, Stream.TARGET)
        return logits

    def probabilities(
        self, logits: torch.Tensor, slots: Sequence[int], positions: Sequence[int], paths: Paths | None = None
    ) -> torch.Tensor:
        """The distribution that the rule draws from: [rows, vocab] fp32, 1 at the argmax of a greedy row.

        Arguments as those of scores(); `logits` are modified.
        """
        rows = self._process_(logits, slots, positions, paths)
        return _distribution(logits, rows)

    def propose(
        self, logits: torch.Tensor, slots: Sequence[int], positions: Sequence[int], paths: Paths | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draw one draft for each row from a draft model's logits. Returns [rows] int64 and what they were drawn from.

        By the target's rule with the target's noise: where the two models agree, so do their draws. Only rejection
        sampling needs drafts that are independent of the target's noise, and their distribution [rows, vocab] fp32.
        Arguments as those of scores(); `logits` are modified.
        """
        if not self.rejection_sampling:
            return self.draw(logits, slots, positions, paths), None
        rows = self._process_(logits, slots, positions, paths)
        probs = _distribution(logits, rows)
        self._add_noise_(logits, rows, slots, positions, Stream.DRAFT)
        return logits.argmax(dim=-1), probs

    def draw_from(
        self, probs: torch.Tensor, slots: Sequence[int], positions: Sequence[int] | torch.Tensor
    ) -> torch.Tensor:
        """Draw one token for each row from `probs` [rows, vocab] fp32 of any sum. Returns [rows] int64."""
        scores = probs.log()
        self._noise.apply(scores, slots, positions)
        return scores.argmax(dim=-1)

    def coins(self, slots: Sequence[int], positions: Sequence[int], stream: Stream) -> torch.Tensor:
        """One number for each row, uniform in (0, 1), for a decision of its own at that position: [rows] fp32."""
        return self._noise.coins(slots, positions, stream)

    def uses_paths(self, slots: Sequence[int]) -> bool:
        """Whether the draws of any of the slots depend on paths."""
        return self._penalties.used_by(slots)

    def record(self, slots: Sequence[int], token_ids: torch.Tensor) -> None:
        """Count generated tokens for penalties. token_ids: [rows] int64, one for each entry of `slots`."""
        self._penalties.record(slots, token_ids)

    def _process_(
        self, logits: torch.Tensor, slots: Sequence[int], positions: Sequence[int], paths: Paths | None
    ) -> list[int]:
        """Everything but the noise, in place. Returns the rows that get noise, which are not greedy."""
        self._penalties.apply(logits, slots, paths)
        self._bias.apply(logits, slots)
        self._min_tokens.apply(logits, slots, positions)
        if rows := rows_using(slots, self._random):
            users = [slots[row] for row in rows]
            part = take_rows(logits, rows)
            # Relative to the row's maximum: exact near it, and no temperature, however small, overflows.
            part -= part.amax(dim=-1, keepdim=True)
            part /= self._temperature[torch.tensor(users, device=self._device)][:, None]
            self._filters.apply(part, users)
            put_rows(logits, rows, part)
        return rows

    def _add_noise_(
        self, logits: torch.Tensor, rows: Sequence[int], slots: Sequence[int], positions: Sequence[int], stream: Stream
    ) -> None:
        if rows:
            part = take_rows(logits, rows)
            self._noise.apply(part, [slots[row] for row in rows], [positions[row] for row in rows], stream)
            put_rows(logits, rows, part)


def _distribution(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """softmax of `rows`, 1 at the argmax of the others: [rows, vocab] fp32, a new tensor."""
    if len(rows) == len(logits):
        return logits.softmax(dim=-1)
    probs = torch.zeros_like(logits).scatter_(1, logits.argmax(dim=-1, keepdim=True), 1.0)
    if rows:
        probs[list(rows)] = logits[list(rows)].softmax(dim=-1)
    return probs
