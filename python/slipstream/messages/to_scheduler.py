"""Everything the scheduler process receives: requests from the tokenizer, results from the worker."""

from typing import Any

import msgspec

from slipstream.messages.images import ImageInput
from slipstream.messages.sampling import Logprob, SamplingParams
from slipstream.messages.to_tokenizer import AbortRequest, FlushCache


class AddRequest(msgspec.Struct, frozen=True, tag=True):
    """One tokenised prompt with one SamplingParams for each choice. prompt plus max_new_tokens fits the limit."""

    rid: str
    token_ids: list[int]
    choices: list[SamplingParams]
    images: list[ImageInput] = []  # in the order of their offsets; they do not overlap


class FinishChoice(msgspec.Struct, frozen=True, tag=True):
    """The tokenizer found a stop string: this choice ends after `num_tokens` of its generated tokens."""

    rid: str
    choice: int
    num_tokens: int


class WorkerReady(msgspec.Struct, frozen=True, tag=True):
    """The worker has loaded and knows its memory. `num_pages` counts the sink page 0."""

    num_pages: int
    info: dict[str, Any]


class SlotResult(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one slot got from one step: committed token ids, or an error that ends this request alone.

    A decode slot commits the accepted drafts and the bonus token; a prefill chunk that is not the last of its prompt
    commits no token. `num_drafts` is the number of drafts that were verified.
    """

    slot: int
    token_ids: list[int]
    logprobs: list[Logprob] | None = None
    prompt_logprobs: list[Logprob] | None = None  # of this chunk's rows
    error: str | None = None
    num_drafts: int = 0


class StepResult(msgspec.Struct, frozen=True, tag=True):
    """The outcome of one Plan. `results` has one entry for each chunk and each decode slot of the plan."""

    step: int
    results: list[SlotResult]
    step_s: float  # time the worker spent


FromTokenizer = AddRequest | FinishChoice | AbortRequest | FlushCache
FromWorker = WorkerReady | StepResult
ToScheduler = FromTokenizer | FromWorker
