"""Drawing token by token, as a sequence without drafts is generated."""

from collections.abc import Sequence

from torch import Tensor

from slipstream.sampling.sampler import Sampler


def sample(sampler: Sampler, logits: Tensor, slots: Sequence[int], positions: Sequence[int]) -> Tensor:
    """Draw one token for each row and record it for the penalties of its slot. Returns [rows] int64.

    logits: [rows, vocab] fp32, modified. Each slot occurs once.
    """
    token_ids = sampler.draw(logits, slots, positions)
    sampler.record(slots, token_ids)
    return token_ids
