"""What a draft is trained on: rows of tokens, and how much the target's prediction after each of them counts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from embedded_training.batches import Rows, Streams
from embedded_training.draft_target import Target
from embedded_training.tokens import BOS, END_INST, EOS, TARGET_FLAG, TOKEN_MASK, load_array
from slipstream.errors import ConfigError

SHORTEST_PROMPT = 64  # of rows that are long enough; see cut_range
PROMPT_WEIGHT = 0.3  # of text that the target did not write itself
SEGMENTS = (32, 160)  # shortest and longest run of tokens drawn at one temperature
AFTER_END = 4  # tokens after an answer's end that still count: a draft may run past it in its last step


@dataclass(frozen=True)
class DraftBatch:
    """tokens int64 [B, T]; weights fp32 [B, T]: of the target's prediction after each token."""

    tokens: Tensor
    weights: Tensor


class Source(Protocol):
    """A kind of training rows."""

    def next(self) -> DraftBatch:
        """The next batch, always of the same shape."""


class Pool:
    """Rows held on the device, every pass in a new order."""

    def __init__(self, tokens: Tensor, weights: Tensor, count: int, rng: np.random.Generator) -> None:
        if len(tokens) < count:
            raise ConfigError(f"a batch needs {count} rows and there are {len(tokens)}: lower --batch-tokens")
        self._tokens, self._weights, self._count, self._rng = tokens.to(torch.int32), weights.half(), count, rng
        self._order: np.ndarray = np.empty(0, dtype=np.int64)

    def next(self) -> DraftBatch:
        """See Source."""
        if len(self._order) < self._count:
            self._order = np.concatenate([self._order, self._rng.permutation(len(self._tokens))])
        chosen, self._order = self._order[: self._count], self._order[self._count :]
        rows = torch.from_numpy(chosen).to(self._tokens.device)
        return DraftBatch(self._tokens[rows].long(), self._weights[rows].float())


class LongRows:
    """Source text and dialogues as they are, up to the target's longest context."""

    def __init__(self, corpus: CorpusArrays, length: int, counts: tuple[int, int, int], device: str) -> None:
        self._counts = counts
        self._packages = Streams(corpus.packages, length - 1, corpus.rng, device)
        self._library = Streams(corpus.library, length - 1, corpus.rng, device)
        self._dialogues = Rows(corpus.dialogues[:, :length], corpus.rng, device)

    def next(self) -> DraftBatch:
        """See Source."""
        kinds = (self._packages, self._library, self._dialogues)
        rows = torch.cat([kind.rows(count) for kind, count in zip(kinds, self._counts, strict=True) if count])
        tokens = rows & TOKEN_MASK
        weights = torch.zeros(tokens.shape, device=tokens.device)
        weights[:, :-1] = ((rows[:, 1:] & TARGET_FLAG) != 0).float()
        return DraftBatch(tokens, weights)


class CorpusArrays:
    """The arrays of a corpus folder, with the random numbers that choose from them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        names = ("packages", "library", "dialogues", "chat")
        self.packages, self.library, self.dialogues, self.chat = (load_array(folder / f"{n}.npy.xz") for n in names)


def source_prompts(corpus: CorpusArrays, rows: int, length: int, library_share: float) -> Tensor:
    """int64 [rows, length]: stretches of source text, each begun with <s>."""
    from_library = round(rows * library_share)
    parts = []
    for array, count in ((corpus.library, from_library), (corpus.packages, rows - from_library)):
        starts = corpus.rng.integers(0, len(array) - length, count)
        parts.append((array[starts[:, None] + np.arange(length)] & TOKEN_MASK).astype(np.int64))
    tokens = np.concatenate(parts)
    tokens[:, 0] = BOS
    return torch.from_numpy(tokens)


def cut_range(length: int) -> tuple[int, int]:
    """Shortest and longest prompt of a row: the target writes at least 128 tokens of it, or half.

    >>> cut_range(512), cut_range(40)
    ((64, 384), (10, 20))
    """
    return min(SHORTEST_PROMPT, length // 4), length - min(128, length // 2)


def continued_source(
    target: Target, tokens: Tensor, greedy_share: float, rng: np.random.Generator, deadline: float = math.inf
) -> tuple[Tensor, Tensor]:
    """Rows cut at a random place and continued by the target, greedily and by sampling in turns: tokens, weights.

    What the target has not reached at `deadline` stays as it was, and counts nothing.
    """
    rows, length = tokens.shape
    shortest, longest = cut_range(length)
    starts = torch.from_numpy(rng.integers(shortest, longest + 1, rows)).to(tokens.device)
    temperatures = torch.from_numpy(_temperatures(rows, length, greedy_share, rng)).to(tokens.device)
    written = torch.arange(length, device=tokens.device) >= starts[:, None]
    weights = torch.where(written, 1.0, PROMPT_WEIGHT)
    done = target.continue_rows(tokens, starts, temperatures, deadline)
    weights[:, done.shape[1] :] = 0
    return torch.cat([done, tokens[:, done.shape[1] :]], dim=1), weights


def _temperatures(rows: int, length: int, greedy_share: float, rng: np.random.Generator) -> np.ndarray:
    """float32 [rows, length] of 0 and 1 in runs."""
    lengths = rng.integers(SEGMENTS[0], SEGMENTS[1] + 1, (rows, -(-length // SEGMENTS[0])))
    run_of = (np.arange(length)[None, :, None] >= lengths.cumsum(1)[:, None, :]).sum(-1)
    sampled = rng.random(lengths.shape) >= greedy_share
    return np.take_along_axis(sampled, run_of, axis=1).astype(np.float32)


def answered_questions(
    target: Target, rows: np.ndarray, rng: np.random.Generator, device: str
) -> tuple[Tensor, Tensor]:
    """Stored chat rows [n, length], each with one of its answers given by the target: tokens, weights.

    Only answers count, the earlier ones of the row included, and the few tokens after the last one.
    """
    plain = rows & TOKEN_MASK
    ends = plain == END_INST
    whole = ends & (np.cumsum((plain == EOS)[:, ::-1], 1)[:, ::-1] > 0)  # an end of an answer follows
    kept = whole.any(1)
    rows, plain, whole = rows[kept], plain[kept], whole[kept]
    chosen = np.argmax(whole * rng.random(whole.shape), axis=1)
    starts = torch.from_numpy(chosen + 1).to(device)
    tokens = torch.from_numpy(plain.astype(np.int64)).to(device)
    tokens = target.continue_rows(tokens, starts, torch.zeros(tokens.shape, device=device))
    flagged = torch.from_numpy(((rows & TARGET_FLAG) != 0).astype(np.float32)).to(device)
    earlier = torch.roll(flagged, -1, dims=1)
    before = torch.arange(tokens.shape[1], device=device) < starts[:, None] - 1
    return tokens, torch.maximum(earlier * before, answer_weights(tokens, starts, (EOS,)))


def answer_weights(tokens: Tensor, starts: Tensor, stops: Sequence[int]) -> Tensor:
    """1 from starts[b] of row b to its first token of `stops` and a little further, else 0: fp32 [B, T]."""
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    ended = torch.isin(tokens, torch.tensor(stops, device=tokens.device)) & (columns >= starts[:, None])
    last = torch.where(ended.any(1), ended.int().argmax(1), tokens.shape[1]) + AFTER_END
    return ((columns >= starts[:, None]) & (columns < last[:, None])).float()


def written_rows(
    target: Target,
    prompts: Callable[[int], Tensor],
    rows: tuple[int, int, int],
    seconds: float,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """As many continued rows as can be made in `seconds`, within `rows` (least, most, at once): tokens, weights.

    `prompts(n)` gives n rows that are continued together, whole: ids [n, T] on the target's device.
    """
    started, made, count = time.perf_counter(), list[tuple[Tensor, Tensor]](), 0
    least, most, at_once = rows
    print(f"the target continues up to {most:,} rows of text, for at most {seconds:.0f} s", flush=True)
    while count < most and (count < least or time.perf_counter() - started < seconds):
        made.append(continued_source(target, prompts(min(at_once, most - count)), 0.7, rng, started + seconds))
        count += len(made[-1][0])
        if made[-1][0].is_cuda:
            torch.cuda.synchronize()
        print(f"  {count:,} rows after {time.perf_counter() - started:.1f} s", flush=True)
    return joined(made)


def joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All tokens, all weights."""
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([weights for _, weights in parts])
