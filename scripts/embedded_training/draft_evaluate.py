"""Acceptance length of a target and its draft: greedy chain speculation in plain torch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from embedded_training.draft_batches import AFTER_END
from embedded_training.draft_model import DraftModel
from embedded_training.draft_target import Target
from embedded_training.tokens import EOS, PAD

COMPLETIONS = 100
QUESTIONS = 100
COMPLETION_TOKENS = 64
ANSWER_TOKENS = 96
PROMPT_TOKENS = (64, 512)


@dataclass(frozen=True)
class Replies:
    """tokens [n, length]: prompts, the target's greedy replies and some tokens more; both bounds of each reply."""

    tokens: Tensor
    starts: Tensor
    ends: Tensor


@dataclass(frozen=True)
class Acceptance:
    """Means over verify steps: tokens verified, and tokens that were part of the reply; share kept per position."""

    length: float
    length_in_reply: float
    per_position: list[float]
    steps: int


def question_prompts(tests: dict[str, list[dict[str, object]]]) -> list[list[int]]:
    """The scored questions in the default phrasing."""
    phrasing = tests["questions"][0]["phrasing"]
    return [list(q["prompt"]) for q in tests["questions"] if q["phrasing"] == phrasing][:QUESTIONS]  # type: ignore[call-overload]


def source_cuts(windows: Sequence[Sequence[int]], seed: int, count: int = COMPLETIONS) -> list[list[int]]:
    """Beginnings of held-out windows, cut at a random length; windows shorter than that length take no part."""
    rng = random.Random(seed)
    prompts: list[list[int]] = []
    while len(prompts) < count:
        window, length = rng.choice(windows), rng.randint(*PROMPT_TOKENS)
        if len(window) >= length:
            prompts.append(list(window[:length]))
    return prompts


def greedy_replies(
    target: Target, prompts: Sequence[Sequence[int]], max_tokens: int, stops: Sequence[int] = ()
) -> Replies:
    """The target's greedy replies, each ended after one of `stops` or `max_tokens` tokens."""
    device = target.head.device
    starts = torch.tensor([len(p) for p in prompts], device=device)
    width = int(starts.max()) + max_tokens + AFTER_END
    tokens = torch.tensor([[*p, *[PAD] * (width - len(p))] for p in prompts], device=device)
    tokens = target.continue_rows(tokens, starts, torch.zeros(tokens.shape, device=device))
    ends = starts + max_tokens
    columns = torch.arange(width, device=device)
    stopped = torch.isin(tokens, torch.tensor(stops, device=device)) & (columns >= starts[:, None])
    ends = torch.where(stopped.any(1), torch.minimum(ends, stopped.int().argmax(1) + 1), ends)
    return Replies(tokens, starts, ends)


@torch.no_grad()
def acceptance(target: Target, draft: DraftModel, replies: Replies, drafts: int = 3) -> Acceptance:
    """Greedy chain speculation over the replies, each step with `drafts` drafts. With n tokens known, the draft's rows
    0..n-2 are those of the target's hidden states, and each draft adds one row of its own; the longest right beginning
    is kept, and the target's next token follows.

    One unrolled forward tells of every n at once: as long as drafts are right, they are the tokens of the reply.
    """
    counts = []
    for tokens in replies.tokens.split(16):
        hidden, embeddings = target.hidden(tokens), F.embedding(tokens, target.embeddings)
        nothing = torch.zeros(tokens.shape, device=tokens.device)
        outs, _, _ = draft.unrolled(embeddings, hidden, target.head, hidden.float(), nothing, drafts)
        going = torch.ones(tokens.shape, dtype=torch.bool, device=tokens.device)
        count = torch.zeros(tokens.shape, dtype=torch.long, device=tokens.device)
        for i, out in enumerate(outs):
            going = going & (F.linear(out, target.head).float().argmax(-1) == torch.roll(tokens, -2 - i, dims=1))
            count += going
        counts.append(count)
    by_anchor = torch.cat(counts)
    return walked(replies, lambda rows, known: by_anchor[rows, known - 2], drafts)


def walked(replies: Replies, accepted: Callable[[Tensor, Tensor], Tensor], drafts: int) -> Acceptance:
    """Goes through all replies; accepted(rows, known) tells how many drafts hold where `known` tokens are known."""
    known = replies.starts + 1  # the prefill gives the first token
    histogram = torch.zeros(drafts + 1, dtype=torch.long)
    in_reply = steps = 0
    while len(rows := (known < replies.ends).nonzero().flatten()):
        count = accepted(rows, known[rows])
        histogram += torch.bincount(count, minlength=drafts + 1).cpu()
        steps += len(rows)
        in_reply += int(torch.minimum(count + 1, replies.ends[rows] - known[rows]).sum())
        known[rows] += count + 1
    reached = histogram.flip(0).cumsum(0).flip(0)
    length = float((histogram * torch.arange(1, drafts + 2)).sum()) / steps
    return Acceptance(
        length=round(length, 4),
        length_in_reply=round(in_reply / steps, 4),
        per_position=[round(int(n) / steps, 4) for n in reached[1:]],
        steps=steps,
    )


def corpus_replies(
    target: Target, tests: dict[str, list], seed: int = 1, limit: int | None = None
) -> dict[str, Replies]:  # type: ignore[type-arg]
    """The target's replies to both kinds of prompts of a corpus folder's tests.json."""
    questions, cuts = question_prompts(tests)[:limit], source_cuts(tests["held_out"], seed, limit or COMPLETIONS)
    print(f"to measure with, the target answers {len(questions)} questions and continues {len(cuts)} cuts", flush=True)
    return {
        "questions": greedy_replies(target, questions, ANSWER_TOKENS, (EOS,)),
        "source": greedy_replies(target, cuts, COMPLETION_TOKENS, (EOS,)),
    }
