"""Text for the draft of any target: files in, the target's own tokens out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from embedded_training.draft_batches import DraftBatch, answer_weights, cut_range
from embedded_training.draft_evaluate import COMPLETION_TOKENS, COMPLETIONS, PROMPT_TOKENS, Replies, greedy_replies
from embedded_training.draft_target import Target
from slipstream.errors import ConfigError, RequestError
from slipstream.hf_transformers.spec import ModelSpec

if TYPE_CHECKING:
    from slipstream.tokenizer.tekken import TekkenTokenizer

CHATS = ".jsonl"
LEAST_ANSWER = 16  # tokens that must have room behind a conversation
LEAST_TEXT = 16  # tokens to cut prompts from
REPLY_TOKENS = 96


@dataclass(frozen=True)
class TextCorpus:
    """All documents one after the other, each begun with <s>, and conversations up to where the assistant speaks."""

    stream: np.ndarray  # int32 [n]
    chats: list[list[int]]
    bos: int
    stops: tuple[int, ...]  # ids that end an answer

    def split(self, held_out_share: float) -> tuple[TextCorpus, TextCorpus]:
        """(for training, held out): the end of the stream, and the last conversations, are held out."""
        cut, chats = round(len(self.stream) * (1 - held_out_share)), round(len(self.chats) * (1 - held_out_share))
        return (
            TextCorpus(self.stream[:cut], self.chats[:chats], self.bos, self.stops),
            TextCorpus(self.stream[cut:], self.chats[chats:], self.bos, self.stops),
        )

    def rows(self, count: int, length: int, rng: np.random.Generator) -> Tensor:
        """int64 [count, length]: stretches of the stream, each begun with <s>. Raises ConfigError for too little."""
        if len(self.stream) < length:
            raise ConfigError(
                f"{len(self.stream)} tokens of text, and a row takes {length}: give more text or shorter rows"
            )
        starts = rng.integers(0, len(self.stream) - length + 1, count)
        tokens = self.stream[starts[:, None] + np.arange(length)].astype(np.int64)
        tokens[:, 0] = self.bos
        return torch.from_numpy(tokens)


def read_text(paths: Sequence[Path], spec: ModelSpec, seed: int) -> TextCorpus:
    """Files, and all of folders; documents and conversations in a random order.

    A `.jsonl` file has one conversation a line, {"messages": [...]} as in a chat request; what stands after the last
    user's message is left out, because the target answers itself. Every other file is a document; in a folder, hidden
    ones and those that are not UTF-8 are passed over. Raises ConfigError where nothing is left.
    """
    from slipstream.tokenizer.tekken import TekkenTokenizer  # needs mistral-common, which training itself does not

    if spec.tokenizer_kind != "tekken":
        raise ConfigError(f"{spec.path} has no tekken.json that can be used, and a draft is trained with its target's")
    tokenizer = TekkenTokenizer(spec.tokenizer_path)
    rng = np.random.default_rng(seed)
    documents: list[np.ndarray] = []
    chats: list[list[int]] = []
    for path in _files(paths):
        text = _read(path, named=path in paths)
        if path.suffix == CHATS:
            chats += [tokenizer.encode_chat(messages).token_ids for messages in _conversations(path, text)]
        elif text:
            documents.append(np.array(_encoded(tokenizer, path, text), dtype=np.int32))
    if not documents:
        raise ConfigError("there is no text: name UTF-8 files, or folders that hold some, with --text")
    stream = np.concatenate([documents[i] for i in rng.permutation(len(documents))])
    chats = [chats[i] for i in rng.permutation(len(chats))]
    print(f"text: {len(documents):,} documents of {len(stream):,} tokens, {len(chats):,} conversations", flush=True)
    return TextCorpus(stream, chats, tokenizer.encode("")[0], spec.eos_token_ids or tokenizer.eos_token_ids)


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            raise ConfigError(f"--text {path}: there is no such file or folder")
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (f for f in found if f.is_file() and not any(p.startswith(".") for p in f.relative_to(path).parts))


def _read(path: Path, *, named: bool) -> str:
    """The text of a file; "" for one of a folder that is not text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        if named:
            raise ConfigError(f"--text {path} is not UTF-8: {error}") from error
        return ""


def _encoded(tokenizer: TekkenTokenizer, path: Path, text: str) -> list[int]:
    try:
        return tokenizer.encode(text)
    except RequestError as error:
        raise ConfigError(f"--text {path}: {error}; leave the file out") from error


def _conversations(path: Path, text: str) -> Iterator[list[dict[str, Any]]]:
    """The messages of each line up to its last from a user."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            messages = json.loads(line)["messages"]
            last = max(i for i, message in enumerate(messages) if message["role"] == "user")
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f'{path}, line {number}: not {{"messages": [...]}} with a user\'s message') from error
        yield messages[: last + 1]


class PlainRows:
    """Stretches of text as they are, up to the target's longest context. See Source."""

    def __init__(self, corpus: TextCorpus, shape: tuple[int, int], rng: np.random.Generator, device: str) -> None:
        self._corpus, self._shape, self._rng, self._device = corpus, shape, rng, device
        self._weights = torch.ones(shape, device=device)

    def next(self) -> DraftBatch:
        """See Source."""
        return DraftBatch(self._corpus.rows(*self._shape, self._rng).to(self._device), self._weights)


def answered_chats(
    target: Target, corpus: TextCorpus, shape: tuple[int, int], batch: int, seconds: float, device: str
) -> list[tuple[Tensor, Tensor]]:
    """Rows of conversations with the target's greedy answer, at most `shape` [n, length] and as many as can be made in
    `seconds`, `batch` of them at once: tokens, weights. Time may end an answer early.

    Conversations that leave no room for an answer take no part.
    """
    most, length = shape
    started = time.perf_counter()
    fitting = [chat for chat in corpus.chats if len(chat) <= length - LEAST_ANSWER]
    if not fitting:
        raise ConfigError(
            f"no conversation leaves {LEAST_ANSWER} of {length} tokens to its answer: raise --chat-length"
        )
    made: list[tuple[Tensor, Tensor]] = []
    most = min(most, len(fitting))
    print(f"the target answers up to {most:,} conversations, for at most {seconds:.0f} s", flush=True)
    for i in range(0, most, batch):
        if made and time.perf_counter() - started > seconds:
            break
        prompts = fitting[i : min(i + batch, most)]
        starts = torch.tensor([len(prompt) for prompt in prompts], device=device)
        padded = [prompt + [corpus.bos] * (length - len(prompt)) for prompt in prompts]
        tokens = torch.tensor(padded, device=device)
        done = target.continue_rows(tokens, starts, torch.zeros(tokens.shape, device=device), started + seconds)
        tokens = torch.cat([done, tokens[:, done.shape[1] :]], dim=1)
        weights = answer_weights(tokens, starts, corpus.stops)
        weights[:, done.shape[1] :] = 0
        begun = weights.any(1)
        made.append((tokens[begun], weights[begun]))
        print(f"  {i + len(prompts):,} conversations after {time.perf_counter() - started:.1f} s", flush=True)
    if not any(len(tokens) for tokens, _ in made):
        raise ConfigError("time ended before any answer began: raise --write-seconds, or lower --at-once")
    return made


def text_replies(
    target: Target, corpus: TextCorpus, context_length: int, seed: int, limit: int | None
) -> dict[str, Replies]:
    """The target's greedy replies to cuts of the text, "text", and to conversations, "chat", where there are any."""
    count, rng = limit or COMPLETIONS, np.random.default_rng(seed)
    longest = max(LEAST_TEXT, min(PROMPT_TOKENS[1] + COMPLETION_TOKENS, context_length, len(corpus.stream)))
    shortest, most = cut_range(longest)
    chats = [chat for chat in corpus.chats if len(chat) + REPLY_TOKENS <= context_length][:count]
    print(f"to measure with, the target replies to {count} cuts of text and {len(chats)} conversations", flush=True)
    rows = corpus.rows(count, most, rng).tolist()
    prompts = [row[: rng.integers(shortest, most + 1)] for row in rows]
    found = {"text": greedy_replies(target, prompts, min(COMPLETION_TOKENS, longest - most), corpus.stops)}
    if chats:
        found["chat"] = greedy_replies(target, chats, REPLY_TOKENS, corpus.stops)
    return found
