"""What a slot gets from one step, as it is being put together."""

from dataclasses import dataclass, field

from slipstream.messages.sampling import Logprob


@dataclass
class Outcome:
    """See SlotResult."""

    token_ids: list[int] = field(default_factory=list)
    num_drafts: int = 0
    logprobs: list[Logprob] | None = None
    prompt_logprobs: list[Logprob] | None = None


@dataclass(frozen=True)
class Run:
    """The path that a decode slot has committed in one step: its bonus token of before and the accepted drafts.

    `rows` are theirs in the step; token_ids[i] follows the token of rows[i], the last is the new bonus token.
    """

    slot: int
    start: int  # position of rows[0]
    rows: list[int]
    token_ids: list[int]
