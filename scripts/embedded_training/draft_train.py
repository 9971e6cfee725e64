"""Trains a draft on a target that is held still: unrolled steps, the target's distribution, its hidden states."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from embedded_training.draft_batches import DraftBatch, Source
from embedded_training.draft_model import DraftModel, save_draft
from embedded_training.draft_target import Target
from embedded_training.muon import Muon
from slipstream.errors import ConfigError

REPORTS = 30
CLOCK_EVERY = 10  # steps on a GPU between two looks at the clock, each of which waits for it


@dataclass(frozen=True)
class DraftRecipe:
    """Everything that decides the draft's weights, besides target, text and shape."""

    seconds: float = 420.0
    seed: int = 1
    unrolled_steps: int = 3
    step_decay: float = 0.7
    hard_share: float = 0.3
    hidden_weight: float = 0.1
    matrix_lr: float = 8e-3
    vector_lr: float = 4e-3
    weight_decay: float = 0.1
    warmup_share: float = 0.02
    decay_share: float = 0.7


@dataclass(frozen=True)
class Part:
    """What every step has of one kind: its name in the log, how much its loss counts, and how many batches of it."""

    name: str
    source: Source
    weight: float = 1.0
    batches: int = 1


def rate_factor(progress: float, recipe: DraftRecipe) -> float:
    """Linear warmup, constant, linear to zero; progress is the share of the time that is over."""
    return max(0.0, min(1.0, (progress + 1e-3) / recipe.warmup_share, (1 - progress) / recipe.decay_share))


class DraftStep:
    """Forward and backward of one batch of each part, from a CUDA graph on a GPU; losses of each part and step."""

    def __init__(self, target: Target, draft: DraftModel, parts: Sequence[Part], recipe: DraftRecipe) -> None:
        self._target, self._draft, self._parts, self._recipe = target, draft, parts, recipe
        self._inputs = self._next()
        self._graph: torch.cuda.CUDAGraph | None = None
        if self._inputs[0].tokens.is_cuda and target.capturable:
            self._capture()

    def __call__(self) -> Tensor:
        """Leaves gradients in the draft; gives mean cross-entropies, fp32 [parts, steps]."""
        batches = self._next()
        if self._graph is None:
            self._draft.zero_grad(set_to_none=True)
            return self._backward(batches)
        for held, new in zip(self._inputs, batches, strict=True):
            held.tokens.copy_(new.tokens)
            held.weights.copy_(new.weights)
        self._graph.replay()
        return self._losses

    def _next(self) -> list[DraftBatch]:
        return [part.source.next() for part in self._parts for _ in range(part.batches)]

    def _backward(self, batches: Sequence[DraftBatch]) -> Tensor:
        found: dict[str, Tensor] = {}
        parts = [part for part in self._parts for _ in range(part.batches)]
        for part, batch in zip(parts, batches, strict=True):
            hidden = self._target.hidden(batch.tokens)
            expected = expected_rows(hidden, self._target.head, self._recipe.hard_share)
            embeddings = F.embedding(batch.tokens, self._target.embeddings)
            steps = self._recipe.unrolled_steps
            _, entropies, gaps = self._draft.unrolled(
                embeddings, hidden, self._target.head, expected, batch.weights, steps
            )
            scale = 1 / batch.weights.sum().clamp(min=1) / part.batches
            shares = self._recipe.step_decay ** torch.arange(steps, device=hidden.device)
            losses = (entropies + self._recipe.hidden_weight * gaps) * scale * (shares / shares.sum())
            (part.weight * losses.sum()).backward()
            found[part.name] = found.get(part.name, 0) + entropies.detach() * scale
        return torch.stack([found[part.name] for part in self._parts])

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._draft.zero_grad(set_to_none=True)
                self._backward(self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._draft.zero_grad(set_to_none=True)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._losses = self._backward(self._inputs)


@torch.no_grad()
def expected_rows(hidden: Tensor, head: Tensor, hard_share: float) -> Tensor:
    """Mean of the head's rows under the target's distribution, fp32 [B, T, dim].

    A `hard_share` of the distribution is moved to its likeliest token: that is the one a greedy request accepts.
    """
    means = []
    for rows in hidden.flatten(0, 1).split(16384):
        logits = F.linear(rows, head).float()
        soft = logits.softmax(-1).to(head.dtype) @ head
        means.append(soft.float() * (1 - hard_share) + head[logits.argmax(-1)].float() * hard_share)
    return torch.cat(means).view(hidden.shape)


def train_draft(
    target: Target,
    params: Mapping[str, Any],
    parts: Sequence[Part],
    recipe: DraftRecipe,
    out: Path,
    measure: Callable[[DraftModel], dict[str, Any]],
    deadline: float = math.inf,
    notes: Mapping[str, Any] | None = None,
) -> DraftModel:
    """Trains for `recipe.seconds`, compiling not counted; writes the checkpoint and draft_training.json to `out`, at
    every measurement, so that a run that is ended early leaves both.

    `params` is the draft's params.json; `notes` go into the record as they are.
    Training ends at `deadline` on time.perf_counter()'s clock if that is earlier; the learning rate then falls sooner.
    """
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    device = target.head.device
    draft = DraftModel(params, target.head.dtype, device)
    if device.type == "cuda":
        draft.compile()
    count = sum(p.numel() for p in draft.parameters())
    print(f"a draft of {count:,} parameters, {count * 2 / 2**20:.2f} MiB, {recipe}", flush=True)
    started = time.perf_counter()
    step = DraftStep(target, draft, parts, recipe)
    seconds = min(recipe.seconds, deadline - time.perf_counter())
    if seconds <= 0:
        raise ConfigError("no time is left to train: allow more, or write fewer rows")
    print(f"ready after {time.perf_counter() - started:.1f} s, trains for {seconds:.0f} s", flush=True)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    record: dict[str, Any] = {"recipe": asdict(recipe), "parameters": count, "torch": torch.__version__, "device": name}
    record |= notes or {}

    def keep(log: list[dict[str, Any]]) -> None:
        save_draft(draft, out)
        (out / "draft_training.json").write_text(json.dumps(record | {"log": log}, indent=1) + "\n", encoding="utf-8")

    _run(draft, step, parts, recipe, seconds, measure, keep)
    return draft


def _run(
    draft: DraftModel,
    step: DraftStep,
    parts: Sequence[Part],
    recipe: DraftRecipe,
    seconds: float,
    measure: Callable[[DraftModel], dict[str, Any]],
    keep: Callable[[list[dict[str, Any]]], None],
) -> None:
    optimizers: list[torch.optim.Optimizer] = [
        Muon(draft.matrices(), lr=recipe.matrix_lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(draft.vectors(), lr=recipe.vector_lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0),
    ]
    rates = (recipe.matrix_lr, recipe.vector_lr)
    log: list[dict[str, Any]] = []
    total, counted = torch.zeros(len(parts), recipe.unrolled_steps, device=draft.norm.device), 0
    started, reported, progress, done = time.perf_counter(), 0, 0.0, 0
    while progress < 1:
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * rate_factor(progress, recipe)
        total += step()
        counted += 1
        done += 1
        for optimizer in optimizers:
            optimizer.step()
        if not total.is_cuda or done % CLOCK_EVERY == 0:
            if total.is_cuda:
                torch.cuda.synchronize()
            elapsed = time.perf_counter() - started
            progress = elapsed / seconds
        if progress * REPORTS >= reported + 1:
            reported = min(int(progress * REPORTS), REPORTS)  # the last one measures
            losses = (total / counted).tolist()
            total.zero_()
            counted = 0
            entry: dict[str, Any] = {"step": done, "seconds": round(elapsed, 1)}
            entry |= {p.name: [round(x, 3) for x in row] for p, row in zip(parts, losses, strict=True)}
            measured = measure(draft) if reported % 5 == 0 else {}
            log.append(entry | measured)
            print(log_line(log[-1]), flush=True)
            if measured:
                keep(log)


def log_line(entry: Mapping[str, Any]) -> str:
    """An entry of a record as it is printed.

    >>> log_line({"step": 120, "text": [3.1, 3.25], "accepted_text": 1.7})
    'step 120, text 3.1 3.25, accepted_text 1.7'
    """
    values = {name: value if isinstance(value, list) else [value] for name, value in entry.items()}
    return ", ".join(" ".join([name, *map(str, value)]) for name, value in values.items())
