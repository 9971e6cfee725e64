"""Everything the server process receives: text from the tokenizer, life signs from every child process."""

import msgspec

from slipstream.messages.sampling import DraftStats, FinishReason
from slipstream.messages.to_tokenizer import FlushDone, RequestFailed, SchedulerReady, SchedulerStatus


class TokenText(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One token with its exact bytes (possibly part of a character) and its logprob in nats.

    `logprob` is None for the first token of a prompt, which has no predecessor.
    """

    token_id: int
    data: bytes
    logprob: float | None
    top: list[tuple[int, bytes, float]] = []  # (token id, bytes, logprob), likeliest first


class TextOutput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """New text of one choice. Text, ids and logprobs agree: text held back for a stop string holds its ids back too."""

    rid: str
    choice: int
    text: str
    token_ids: list[int]
    prompt_len: int
    num_cached: int
    num_generated: int  # tokens of this choice so far, these included
    finish: FinishReason | None = None
    logprobs: list[TokenText] | None = None  # one for each token id
    prompt_logprobs: list[TokenText] | None = None  # with the first output, if asked for
    prompt_text: str | None = None  # with the first output, if echo
    prompt_token_ids: list[int] | None = None  # likewise
    drafts: DraftStats | None = None  # up to this output; None: nothing was drafted for this choice


class TextOutputs(msgspec.Struct, frozen=True, tag=True):
    """What one tokenizer turn has for the clients."""

    outputs: list[TextOutput]


class Tokenized(msgspec.Struct, frozen=True, tag=True):
    """Answer to Tokenize."""

    rid: str
    token_ids: list[int]


class Detokenized(msgspec.Struct, frozen=True, tag=True):
    """Answer to Detokenize."""

    rid: str
    text: str


class Stage(msgspec.Struct, frozen=True, tag=True):
    """A line for the person who started the server: what a process is doing."""

    process: str
    text: str


class Progress(msgspec.Struct, frozen=True, tag=True):
    """`done` of `total` things, for a progress bar."""

    process: str
    text: str
    done: int
    total: int


class ProcessFailed(msgspec.Struct, frozen=True, tag=True):
    """A child process cannot go on; it exits right after this. `message` is for the person at the terminal."""

    process: str
    message: str


ChildStatus = Stage | Progress | ProcessFailed
FromTokenizerToServer = (
    TextOutputs | RequestFailed | Tokenized | Detokenized | FlushDone | SchedulerReady | SchedulerStatus
)
ToServer = FromTokenizerToServer | ChildStatus
