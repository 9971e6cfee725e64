"""The life of one benchmark request, in seconds of one clock."""

from dataclasses import dataclass

from slipstream.bench.stream_events import Progress
from slipstream.messages.sampling import DraftStats


@dataclass
class RequestRecord:
    """Filled in while the answer streams. `error` says in a few words why there is no complete answer."""

    started_s: float
    first_token_s: float | None = None
    last_token_s: float | None = None
    ended_s: float | None = None
    num_first_tokens: int = 0  # in the event that brought the first token
    num_tokens: int = 0
    prompt_len: int = 0
    num_cached: int = 0
    finish: str | None = None
    acceptance_length: float | None = None
    drafts: DraftStats | None = None
    error: str | None = None

    def note(self, progress: Progress, now_s: float) -> None:
        """Take in one event."""
        grows = progress.num_tokens is not None and progress.num_tokens > self.num_tokens
        if grows or (progress.num_tokens is None and progress.text):
            if self.first_token_s is None:
                self.first_token_s = now_s
                self.num_first_tokens = progress.num_tokens or 1
            self.last_token_s = now_s
        self.num_tokens = self.num_tokens if progress.num_tokens is None else progress.num_tokens
        self.prompt_len = self.prompt_len if progress.prompt_len is None else progress.prompt_len
        self.num_cached = self.num_cached if progress.num_cached is None else progress.num_cached
        self.finish = progress.finish or self.finish
        self.acceptance_length = progress.acceptance_length or self.acceptance_length
        self.drafts = progress.drafts or self.drafts

    def end(self, now_s: float) -> None:
        """The stream is over."""
        self.ended_s = now_s
        if self.error is None and self.finish is None:
            self.error = "the stream ended early"
        elif self.error is None and self.finish == "abort":
            self.error = "aborted by the server"

    @property
    def ok(self) -> bool:
        return self.ended_s is not None and self.error is None

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.started_s

    @property
    def e2e_s(self) -> float | None:
        return None if self.ended_s is None else self.ended_s - self.started_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds for each token after the first event; None when there were no further ones.

        An event may bring several tokens (speculation, or a client that reads late), so events are not counted.
        """
        num_further = self.num_tokens - self.num_first_tokens
        if self.first_token_s is None or self.last_token_s is None or num_further < 1:
            return None
        return (self.last_token_s - self.first_token_s) / num_further
