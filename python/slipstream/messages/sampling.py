"""How the next token of one request is drawn. Every value is concrete: defaults were filled in at the edge."""

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, array_like=True):
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
    max_draft_tokens: int | None = None  # longest path of drafts in one step; None: no limit, 0: no speculation at all
    accept_cap: int | None = None  # for measuring: so many drafts of a step are accepted at most, whatever they are


class Logprob(msgspec.Struct, frozen=True, array_like=True):
    """Log-probability (nats) of one token under the model's own distribution, before temperature and penalties."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = []  # (token id, logprob), likeliest first


class FinishReason(msgspec.Struct, frozen=True, array_like=True):
    """Why a choice ended. `matched` is the stop id or the stop string."""

    type: str  # "stop" | "length" | "abort"
    matched: int | str | None = None


class DraftStats(msgspec.Struct, frozen=True, array_like=True):
    """What speculation has done for one choice so far, counted in verify steps: steps with at least one draft.

    accepted[i] is the number of verify steps of which i drafts were accepted and kept. Drafts after a stop do not count
    as accepted.
    """

    num_draft_tokens: int
    accepted: tuple[int, ...]

    @property
    def num_verify(self) -> int:
        return sum(self.accepted)

    @property
    def num_accepted(self) -> int:
        return sum(count * steps for count, steps in enumerate(self.accepted))
