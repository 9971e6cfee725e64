"""What the tokenizer knows of one choice: the text so far, and what is held back of it."""

from dataclasses import dataclass, field
from typing import NamedTuple

from slipstream.messages.sampling import DraftStats, FinishReason, Logprob
from slipstream.tokenizer.stop_strings import StopMatch, StopMatcher
from slipstream.tokenizer.text_tokenizer import Detokenizer


class HeldToken(NamedTuple):
    """A token whose text, characters [start, end) of the choice's text, has not all been released."""

    token_id: int
    logprob: Logprob | None
    start: int
    end: int


@dataclass(frozen=True)
class Released:
    """What may go to the client now: a text with the tokens that are complete in it, and perhaps the end."""

    text: str
    tokens: list[HeldToken]
    finish: FinishReason | None


class ChoiceState:
    """The stream of one choice: ids in, released text and ids out.

    A token is released when all of its text is. Where a stop string begins, the text ends; the tokens kept are those
    whose text begins before that place or ends at it. Characters are counted from the beginning of the answer. The
    outcome does not depend on how the ids were cut into calls of add(). Stop strings are looked for only in the text
    of tokens after the first `min_new_tokens`.
    """

    def __init__(self, detokenizer: Detokenizer, matcher: StopMatcher | None, min_new_tokens: int = 0) -> None:
        self._detokenizer = detokenizer
        self._matcher = matcher
        self._min_new_tokens = min_new_tokens
        self._text_len = 0  # characters, released or held
        self._held_text = ""
        self._held_tokens: list[HeldToken] = []
        self.num_read = 0  # tokens, none after a stop string
        self.num_generated = 0  # tokens released
        self.drafts: DraftStats | None = None  # up to the token read last
        self.finish: FinishReason | None = None

    def add(self, token_ids: list[int], logprobs: list[Logprob] | None, finish: FinishReason | None) -> Released:
        """Take the next tokens. With `finish` the stream ends: all that is held comes out.

        The last token of a stop by id has no text. A stop string found before wins over `finish`.
        """
        num_texts = len(token_ids) - _ends_with_stop_id(token_ids, finish)
        for i, token_id in enumerate(token_ids):
            text = self._detokenizer.push(token_id) if i < num_texts else self._detokenizer.flush()
            start = self._text_len if i < num_texts else self._text_len + len(text)
            match = self._append(text)
            self.num_read += 1
            end = self._text_len + self._detokenizer.pending
            self._held_tokens.append(HeldToken(token_id, logprobs[i] if logprobs else None, start, end))
            if match is not None:
                return self._cut(match, self._text_len - len(text))
        if finish is None:
            return self._release(self._text_len - (self._matcher.num_held if self._matcher else 0), None)
        tail = self._detokenizer.flush()
        match = self._append(tail)
        if match is not None:
            return self._cut(match, self._text_len - len(tail))
        return self._release(self._text_len, finish)

    def _append(self, text: str) -> StopMatch | None:
        self._text_len += len(text)
        self._held_text += text
        if self._matcher is None or self.num_read < self._min_new_tokens:
            return None
        return self._matcher.feed(text)

    def _cut(self, match: StopMatch, fed_from: int) -> Released:
        """End the stream before the match in the text that was fed from character `fed_from` on."""
        cut = fed_from + match.end - len(match.stop)
        self._held_tokens = [token for token in self._held_tokens if token.start < cut or token.end <= cut]
        self._held_text = self._held_text[: len(self._held_text) - (self._text_len - cut)]
        self._text_len = cut
        return self._release(cut, FinishReason("stop", match.stop))

    def _release(self, limit: int, finish: FinishReason | None) -> Released:
        """Let out the text before character `limit` and the tokens that end by there; at the end, all that is left."""
        num_held = self._text_len - limit
        text = self._held_text[: len(self._held_text) - num_held]
        self._held_text = self._held_text[len(text) :]
        num_tokens = len(self._held_tokens)
        while finish is None and num_tokens and self._held_tokens[num_tokens - 1].end > limit:
            num_tokens -= 1
        tokens, self._held_tokens = self._held_tokens[:num_tokens], self._held_tokens[num_tokens:]
        self.num_generated += len(tokens)
        self.finish = finish
        return Released(text, tokens, finish)


def _ends_with_stop_id(token_ids: list[int], finish: FinishReason | None) -> bool:
    """Whether the last token is the stop id that ended the choice."""
    return finish is not None and finish.type == "stop" and bool(token_ids) and token_ids[-1] == finish.matched


@dataclass
class RequestState:
    """One request in flight: its choices that have not ended, and what their first outputs carry."""

    choices: dict[int, ChoiceState]
    first_prompt_token: int | None  # where prompt logprobs are wanted from position 0 on
    num_image_bytes: int = 0  # pixels of its images
    prompt_text: str | None = None  # with echo
    prompt_token_ids: list[int] | None = None  # with echo
    echoed: set[int] = field(default_factory=set)  # choices whose first output has gone out
