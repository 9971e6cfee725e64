"""How the next token of one request is drawn. Every value is concrete: defaults were filled in at the edge."""

from collections.abc import Iterable
from itertools import zip_longest

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Sampling parameters of one choice of one request.

    Defaults are the neutral values. `seed`, with the choice's index and the position, keys the noise.
    """

    max_new_tokens: int
    seed: int
    choice: int = 0
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    min_p: float = 0.0
    min_new_tokens: int = 0  # until then stop_token_ids are masked
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    stop_token_ids: tuple[int, ...] = ()  # the end-of-sequence ids among them, unless ignore_eos
    top_logprobs: int | None = None  # None: no logprobs; n: the chosen token's and the n likeliest
    prompt_logprobs_from: int | None = None  # position of the first prompt token whose logprob is wanted
    max_draft_tokens: int | None = None  # drafts in one step, at most, of a tree all its nodes; 0: no speculation
    accept_cap: int | None = None  # for measuring: so many drafts of a step are accepted at most, whatever they are


class Logprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Log-probability (nats) of one token under the model's own distribution, before temperature and penalties."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = []  # (token id, logprob), likeliest first


class FinishReason(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Why a choice ended. `matched` is the stop id or the stop string."""

    type: str  # "stop" | "length" | "abort"
    matched: int | str | None = None


class DraftStats(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What speculation has done for one choice so far, counted in verify steps: steps with at least one draft.

    accepted[i] is the number of verify steps of which i drafts were accepted and kept. Drafts after a stop do not count
    as accepted.
    """

    num_draft_tokens: int
    accepted: tuple[int, ...]

    @staticmethod
    def total(parts: "Iterable[DraftStats]") -> "DraftStats":
        """Of all verify steps together.

        >>> DraftStats.total([DraftStats(4, (1, 2)), DraftStats(15, (0, 0, 5))])
        DraftStats(num_draft_tokens=19, accepted=(1, 2, 5))
        """
        known = list(parts)
        histograms = zip_longest(*(part.accepted for part in known), fillvalue=0)
        return DraftStats(sum(part.num_draft_tokens for part in known), tuple(map(sum, histograms)))

    @property
    def num_verify(self) -> int:
        return sum(self.accepted)

    @property
    def num_accepted(self) -> int:
        return sum(count * steps for count, steps in enumerate(self.accepted))

    @property
    def acceptance_length(self) -> float | None:
        """See acceptance_length()."""
        return acceptance_length(self.num_verify, self.num_accepted)

    @property
    def acceptance_rate(self) -> float | None:
        """Share of the drafts that were accepted, those of all branches of a tree; None without drafts."""
        return self.num_accepted / self.num_draft_tokens if self.num_draft_tokens else None

    @property
    def position_rates(self) -> list[float]:
        """Entry i: the share of the verify steps of which more than i drafts were accepted.

        >>> DraftStats(8, (1, 1, 2)).position_rates
        [0.75, 0.5]
        """
        return [sum(self.accepted[i:]) / self.num_verify for i in range(1, len(self.accepted)) if self.num_verify]


def acceptance_length(num_verify: int, num_accepted: int) -> float | None:
    """Mean tokens of a verify step, 1 + accepted / steps; None without a step.

    >>> acceptance_length(4, 10)
    3.5
    """
    return 1 + num_accepted / num_verify if num_verify else None
