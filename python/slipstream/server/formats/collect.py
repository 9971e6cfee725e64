"""Putting the pieces of an answer together, choice by choice."""

from collections.abc import Sequence

from slipstream.messages.sampling import DraftStats, FinishReason
from slipstream.messages.to_server import TextOutput, TokenText
from slipstream.messages.to_tokenizer import Generate


class ChoiceAnswer:
    """One choice of one prompt, as far as it has come."""

    def __init__(self, prompt: "PromptAnswer", choice: int) -> None:
        self.prompt = prompt
        self.choice = choice
        self.text = ""
        self.token_ids: list[int] = []
        self.logprobs: list[TokenText] = []
        self.num_generated = 0
        self.finish: FinishReason | None = None
        self.drafts: DraftStats | None = None


class PromptAnswer:
    """What the choices of one prompt have in common."""

    def __init__(self, rid: str, num_choices: int) -> None:
        self.rid = rid
        self.prompt_len = 0
        self.num_cached = 0
        self.text: str | None = None
        self.token_ids: list[int] | None = None
        self.logprobs: list[TokenText] | None = None
        self.choices = [ChoiceAnswer(self, choice) for choice in range(num_choices)]


class Collector:
    """The answer to Generates that were sent together. Choices are numbered over all prompts, prompt by prompt."""

    def __init__(self, requests: Sequence[Generate]) -> None:
        self.prompts = [PromptAnswer(request.rid, request.num_choices) for request in requests]
        self.choices = [choice for prompt in self.prompts for choice in prompt.choices]
        self._by_rid: dict[str, PromptAnswer] = {}
        self._first_index: dict[str, int] = {}
        for prompt in self.prompts:
            self._first_index[prompt.rid] = sum(len(before.choices) for before in self._by_rid.values())
            self._by_rid[prompt.rid] = prompt

    @property
    def finished(self) -> bool:
        """Every choice has its last output."""
        return all(choice.finish is not None for choice in self.choices)

    def add(self, output: TextOutput) -> tuple[int, ChoiceAnswer]:
        """File one output; returns the choice's number and the choice so far."""
        prompt = self._by_rid[output.rid]
        choice = prompt.choices[output.choice]
        prompt.prompt_len = max(prompt.prompt_len, output.prompt_len)  # 0 where a choice was aborted before it began
        if output.choice == 0:  # the others find what this one has just computed
            prompt.num_cached = output.num_cached
        if output.prompt_text is not None:
            prompt.text = output.prompt_text
        if output.prompt_token_ids is not None:
            prompt.token_ids = output.prompt_token_ids
        if output.prompt_logprobs is not None:
            prompt.logprobs = output.prompt_logprobs
        choice.text += output.text
        choice.token_ids += output.token_ids
        choice.logprobs += output.logprobs or []
        choice.num_generated = output.num_generated
        choice.finish = output.finish or choice.finish
        choice.drafts = output.drafts or choice.drafts
        return self._first_index[output.rid] + output.choice, choice
