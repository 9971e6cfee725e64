"""Everything the tokenizer process receives: requests from the server, tokens from the scheduler."""

from typing import Any

import msgspec

from slipstream.messages.sampling import DraftStats, FinishReason, Logprob, SamplingParams, acceptance_length


class TextPrompt(msgspec.Struct, frozen=True, tag=True):
    """Plain text, continued as it stands after a beginning-of-sequence token."""

    text: str


class TokenPrompt(msgspec.Struct, frozen=True, tag=True):
    """Token ids, used as they are."""

    token_ids: list[int]


class ChatPrompt(msgspec.Struct, frozen=True, tag=True):
    """Messages, already checked by the server: `role` (system, user or assistant), `content` (a string or a list of
    parts, each {"type": "text", "text": str} or {"type": "image", "data": bytes of an image file}) and perhaps
    `prefix: True` (an assistant message to continue).
    """

    messages: list[dict[str, Any]]


Prompt = TextPrompt | TokenPrompt | ChatPrompt


class Generate(msgspec.Struct, frozen=True, tag=True):
    """Answer one prompt with `num_choices` choices.

    In `sampling`, max_new_tokens is a ceiling (the tokenizer clamps it to the room left), and stop_token_ids
    are the request's own: the tokenizer adds the end-of-sequence ids unless `ignore_eos`. No rid comes twice.
    """

    rid: str
    prompt: Prompt
    sampling: SamplingParams
    num_choices: int = 1
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    echo: bool = False  # return the prompt's text with the first output


class Tokenize(msgspec.Struct, frozen=True, tag=True):
    """Count and return a prompt's ids."""

    rid: str
    prompt: Prompt


class Detokenize(msgspec.Struct, frozen=True, tag=True):
    """Turn ids into text."""

    rid: str
    token_ids: list[int]
    skip_special_tokens: bool = True


class AbortRequest(msgspec.Struct, frozen=True, tag=True):
    """Stop all choices of exactly this request; unknown ids are ignored (it may have ended just now)."""

    rid: str


class FlushCache(msgspec.Struct, frozen=True, tag=True):
    """Forget all cached prefixes; refused while requests run. With `counters`, forget what was counted as well."""

    rid: str
    counters: bool = False


class TokenOutput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """New tokens of one choice, in order. `finish` is set on the last one."""

    rid: str
    choice: int
    token_ids: list[int]
    prompt_len: int
    num_cached: int
    finish: FinishReason | None = None
    logprobs: list[Logprob] | None = None  # one for each token id
    prompt_logprobs: list[Logprob] | None = None  # from prompt_logprobs_from on, with the first output only
    drafts: DraftStats | None = None  # up to this output; None: nothing was drafted for this choice


class TokenOutputs(msgspec.Struct, frozen=True, tag=True):
    """What one scheduler turn committed."""

    outputs: list[TokenOutput]


class RequestFailed(msgspec.Struct, frozen=True, tag=True):
    """A request ended without an answer. `status` is the HTTP status."""

    rid: str
    status: int
    message: str
    param: str | None = None
    code: str | None = None


class FlushDone(msgspec.Struct, frozen=True, tag=True):
    """Answer to FlushCache. `error` says why nothing was flushed."""

    rid: str
    error: str | None = None


class SchedulerReady(msgspec.Struct, frozen=True, tag=True):
    """The worker is loaded and the scheduler accepts requests."""

    max_sequence_len: int  # tokens of prompt plus answer: the context, or the whole KV pool if that is smaller
    num_pages: int  # usable ones: the sink is not among them
    page_size: int
    worker: dict[str, Any]  # device, dtype, parameters, seconds: for display


class Counters(msgspec.Struct):
    """What the scheduler counts from the start of its process. Only the scheduler changes it."""

    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    num_integrity_errors: int = 0
    num_drafts: int = 0  # verify steps: of one choice, with at least one draft
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_accepted_per_position: list[int] = []  # [i]: verify steps of which more than i drafts were accepted

    @property
    def acceptance_length(self) -> float | None:
        """Mean tokens of a verify step; None without a step."""
        return acceptance_length(self.num_drafts, self.num_accepted_tokens)


class SchedulerStatus(msgspec.Struct, frozen=True, tag=True):
    """Heartbeat, twice a second and whenever idle begins."""

    num_running: int
    num_waiting: int
    num_pages: int  # usable ones: free, cached, and held by running requests
    num_pages_free: int
    num_pages_cached: int  # in the prefix tree and not used by a running request
    step_in_flight_s: float  # age of the oldest plan without a result; 0 when none
    counters: Counters = msgspec.field(default_factory=Counters)
    draft_depth: int | None = None  # longest path of drafts in the steps of now; None: served without drafts


FromServer = Generate | Tokenize | Detokenize | AbortRequest | FlushCache
FromScheduler = TokenOutputs | RequestFailed | FlushDone | SchedulerReady | SchedulerStatus
ToTokenizer = FromServer | FromScheduler
