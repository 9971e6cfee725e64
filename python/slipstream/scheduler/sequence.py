"""One choice of one request, from its arrival to its last token."""

from dataclasses import dataclass, field

from slipstream.cache.page_cache import PageLease
from slipstream.messages.images import ImageInput
from slipstream.messages.sampling import DraftStats, FinishReason, Logprob, SamplingParams
from slipstream.scheduler.prefix_key import prefix_key


@dataclass(eq=False)
class Sequence:
    """The scheduler's record of one choice. Lengths count tokens.

    token_ids     prompt and the generated tokens known so far; the worker may be ahead by what is in flight
    prefill_end   tokens known at the last admission: chunks cover them, decode steps come after
    num_planned   of these, how many are cached or have been put into some plan
    num_written   rows (positions) whose KV a result has confirmed
    num_valid     of these, the first so many have the draft's KV too
    warm          the draft follows this sequence and keeps its own KV complete
    num_in_flight steps with a row of this sequence that have not returned
    num_sampling  of these, how many will bring a token, or several
    num_drafting  drafts on the longest paths of these steps: tokens that may come beyond the one each
    accepted      verify steps by the number of accepted drafts, see DraftStats
    """

    rid: str
    choice: int
    token_ids: list[int]
    prompt_len: int
    sampling: SamplingParams
    leader: "Sequence | None" = None  # the choice whose prompt pages this one waits for
    stop_ids: frozenset[int] = frozenset()
    images: list[ImageInput] = field(default_factory=list)
    slot: int | None = None
    lease: PageLease = field(default_factory=PageLease)
    num_cached: int = 0  # at the first admission
    prefill_end: int = 0
    num_planned: int = 0
    num_written: int = 0
    num_valid: int = 0
    warm: bool = False
    num_in_flight: int = 0
    num_sampling: int = 0
    num_drafting: int = 0
    num_draft_tokens: int = 0
    accepted: list[int] = field(default_factory=list)
    was_admitted: bool = False
    finish: FinishReason | None = None
    prompt_logprobs: list[Logprob] = field(default_factory=list)
    prompt_logprobs_sent: bool = False
    refused_at: int = -1  # PageCache.num_releases when it last did not fit
    limit: int = field(init=False)  # longest that it may become

    def __post_init__(self) -> None:
        self.limit = self.prompt_len + self.sampling.max_new_tokens

    @property
    def key(self) -> list[int]:
        """What stands for token_ids in the prefix tree."""
        return prefix_key(self.token_ids, self.images) if self.images else self.token_ids

    @property
    def num_known(self) -> int:
        return len(self.token_ids)

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.prompt_len

    @property
    def length_lb(self) -> int:
        """Length once everything in flight has returned, unless it stops before: each step brings a token at least."""
        return len(self.token_ids) + self.num_sampling

    @property
    def length_ub(self) -> int:
        """Length that the worker's state may have by then, were every draft accepted; beyond the limit, perhaps."""
        return len(self.token_ids) + self.num_sampling + self.num_drafting

    def put_in_flight(self, samples: bool, depth: int) -> None:
        """A step has a row of this sequence; with `samples` it brings a token, after up to `depth` accepted drafts."""
        self.num_in_flight += 1
        self.num_sampling += samples
        self.num_drafting += depth

    def take_back(self, samples: bool, depth: int) -> None:
        """That step has returned."""
        self.num_in_flight -= 1
        self.num_sampling -= samples
        self.num_drafting -= depth

    @property
    def in_prefill(self) -> bool:
        """Some of the tokens known at admission have not been planned yet."""
        return self.num_planned < self.prefill_end

    @property
    def wants_decode(self) -> bool:
        """One more step, from the token sampled last, is due."""
        return self.num_planned >= self.prefill_end and len(self.token_ids) + self.num_sampling < self.limit

    @property
    def drafts(self) -> DraftStats | None:
        """What speculation has done so far; None: no step with drafts has returned."""
        return DraftStats(self.num_draft_tokens, tuple(self.accepted)) if self.accepted else None

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.sampling.prompt_logprobs_from is not None and not self.prompt_logprobs_sent

    @property
    def waits_for_leader(self) -> bool:
        """A sibling starts when the first choice's prompt pages can be shared."""
        leader = self.leader
        return leader is not None and leader.finish is None and leader.num_written < leader.prompt_len
