"""The two measurements in plain torch: loss on held-out source, and greedy answers to the scored questions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from embedded_training.model import EmbeddedModel
from embedded_training.tokens import EOS, PAD

WINDOW_BATCH = 16
QUESTION_BATCH = 256


@torch.no_grad()
def held_out_loss(model: EmbeddedModel, windows: Sequence[Sequence[int]]) -> float:
    """Mean -ln p per token, over every token of every window but its first."""
    device = model.tok_embeddings.device
    width = max(map(len, windows)) - 1
    total, count = 0.0, 0
    for start in range(0, len(windows), WINDOW_BATCH):
        chosen = list(windows[start : start + WINDOW_BATCH])
        count += sum(len(w) - 1 for w in chosen)
        tokens, targets = _padded(chosen, width, device)
        total += model.losses(tokens, targets)[0].item()
    return total / count


def bits_per_byte(nats_per_token: float, tokens: int, num_bytes: int) -> float:
    """The same loss per byte of text."""
    return nats_per_token * tokens / num_bytes / math.log(2)


@torch.no_grad()
def greedy_answers(model: EmbeddedModel, prompts: Sequence[Sequence[int]], max_tokens: int = 96) -> list[list[int]]:
    """The greedy continuation of each prompt, end token included where it came within `max_tokens`."""
    answers: list[list[int]] = []
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), QUESTION_BATCH):
        answers += _greedy_batch(model, [list(prompts[i]) for i in order[start : start + QUESTION_BATCH]], max_tokens)
    by_prompt = dict(zip(order, answers, strict=True))
    return [by_prompt[i] for i in range(len(prompts))]


def _greedy_batch(model: EmbeddedModel, rows: list[list[int]], max_tokens: int) -> list[list[int]]:
    starts = [len(row) for row in rows]
    running = list(range(len(rows)))
    for _ in range(max_tokens):
        width = max(len(rows[i]) for i in running)
        tokens = torch.tensor([rows[i] + [PAD] * (width - len(rows[i])) for i in running])
        hidden = model(tokens.to(model.tok_embeddings.device))
        last = torch.tensor([len(rows[i]) - 1 for i in running], device=hidden.device)
        chosen = model.logits(hidden[torch.arange(len(running), device=hidden.device), last]).argmax(-1).tolist()
        for i, token in zip(running, chosen, strict=True):
            rows[i].append(token)
        running = [i for i, token in zip(running, chosen, strict=True) if token != EOS]
        if not running:
            break
    return [row[start:] for row, start in zip(rows, starts, strict=True)]


def _padded(windows: Sequence[Sequence[int]], width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Always `WINDOW_BATCH` rows of one width, so that a compiled model meets one shape; empty rows have no targets."""
    tokens = torch.full((WINDOW_BATCH, width), PAD)
    targets = torch.full((WINDOW_BATCH, width), -1)
    for row, window in enumerate(windows):
        ids = torch.tensor(list(window))
        tokens[row, : len(window) - 1] = ids[:-1]
        targets[row, : len(window) - 1] = ids[1:]
    return tokens.to(device), targets.to(device)


def scores(model: EmbeddedModel, questions: Sequence[dict[str, object]]) -> dict[str, tuple[int, int]]:
    """Phrasing -> (answers that are right to the last token and end there, questions asked)."""
    answers = greedy_answers(model, [q["prompt"] for q in questions])  # type: ignore[misc]
    counts: dict[str, tuple[int, int]] = {}
    for question, answer in zip(questions, answers, strict=True):
        right, asked = counts.get(str(question["phrasing"]), (0, 0))
        counts[str(question["phrasing"])] = (right + (answer == question["answer"]), asked + 1)
    return counts
