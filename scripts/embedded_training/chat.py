"""Conversations as token ids of Mistral's v15 chat format, and rows of a fixed length made of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from embedded_training.bpe import TextEncoder
from embedded_training.questions import Conversation, QuestionMaker, Turn
from embedded_training.tokens import (
    BOS,
    END_INST,
    END_SETTINGS,
    END_SYSTEM,
    EOS,
    INST,
    PAD,
    SETTINGS,
    SYSTEM,
    TARGET_FLAG,
)


class ChatEncoder:
    """Encodes conversations; equal to `mistral_common`'s stream (see `assert_equals_mistral_common`)."""

    def __init__(self, text: TextEncoder) -> None:
        self._text = text

    def head(self, system: str | None, effort: str) -> list[int]:
        """Ids before the first question."""
        ids = [BOS]
        if system is not None:
            ids += [SYSTEM, *self._text.encode(system), END_SYSTEM]
        settings = self._text.encode(json.dumps({"reasoning_effort": effort}))
        return [*ids, SETTINGS, *settings, END_SETTINGS]

    def question(self, question: str) -> list[int]:
        """Ids of one user turn, up to the point where the answer starts."""
        return [INST, *self._text.encode(question), END_INST]

    def answer(self, answer: str) -> list[int]:
        """Ids of one answer with its end token: what the model is trained to say."""
        return [*self._text.encode(answer), EOS]

    def prompt(self, conversation: Conversation) -> list[int]:
        """Ids of the conversation without its last answer."""
        ids = self.encode(conversation)
        return [i & ~TARGET_FLAG for i in ids[: len(ids) - len(self.answer(conversation.turns[-1].answer))]]

    def encode(self, conversation: Conversation) -> list[int]:
        """Ids of the whole conversation, `TARGET_FLAG` set in those of the answers."""
        ids = self.head(conversation.system, conversation.effort)
        for turn in conversation.turns:
            ids += self.turn(turn)
        return ids

    def turn(self, turn: Turn) -> list[int]:
        """Ids of one question and its flagged answer."""
        return [*self.question(turn.question), *(i | TARGET_FLAG for i in self.answer(turn.answer))]


def chat_rows(
    maker: QuestionMaker,
    encoder: ChatEncoder,
    count: int,
    length: int,
    max_turns: Callable[[random.Random], int],
    seed: int,
) -> np.ndarray:
    """uint16 [count, length]: one conversation in each row, as many turns as fit and `max_turns` allows, then PAD."""
    rng = random.Random(seed)
    rows = np.full((count, length), PAD, dtype=np.uint16)
    for row in rows:
        conversation = maker.conversation(())
        ids = encoder.head(conversation.system, conversation.effort)
        for position in range(max_turns(rng)):
            turn = encoder.turn(maker.turn())
            if len(ids) + len(turn) > length and position > 0:
                break
            ids += turn
        row[: len(ids)] = ids[:length]
    return rows


def assert_equals_mistral_common(encoder: ChatEncoder, tekken: Path, conversations: Sequence[Conversation]) -> None:
    """Raises ValueError where our ids and `mistral_common`'s differ, for the prompt or the whole conversation."""
    from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.protocol.instruct.validator import ValidationMode
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    serving = MistralTokenizer.from_file(str(tekken))
    finetuning = MistralTokenizer.from_file(str(tekken), mode=ValidationMode.finetuning)
    for conversation in conversations:
        messages = [SystemMessage(content=conversation.system)] if conversation.system is not None else []
        for turn in conversation.turns:
            messages += [UserMessage(content=turn.question), AssistantMessage(content=turn.answer)]
        for tokenizer, part, mine in (
            (serving, messages[:-1], encoder.prompt(conversation)),
            (finetuning, messages, [i & ~TARGET_FLAG for i in encoder.encode(conversation)]),
        ):
            request = ChatCompletionRequest(messages=part, reasoning_effort=conversation.effort)
            theirs = tokenizer.encode_chat_completion(request).tokens
            if theirs != mine:
                raise ValueError(f"chat encoding differs for {conversation}: {theirs} and {mine}")
