"""The training loop: Muon on the layers' matrices, AdamW on embeddings and norms, linear decay to zero."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from embedded_training.batches import Batch, Rows, Streams, as_batch
from embedded_training.evaluate import held_out_loss
from embedded_training.model import EmbeddedModel, Shape, save_native
from embedded_training.muon import Muon
from embedded_training.tokens import load_array


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, besides the corpus and the shape."""

    steps: int = 12000
    seed: int = 1
    length: int = 2048
    library_rows: int = 2
    package_rows: int = 29
    dialogue_rows: int = 1
    chat_rows: int = 96
    chat_weight: float = 0.1
    z_loss: float = 1e-5
    matrix_lr: float = 8e-3
    vector_lr: float = 6e-3
    weight_decay: float = 0.1
    warmup_steps: int = 300
    decay_share: float = 0.6


class Corpus:
    """Draws the two batches of a step: long rows (source and dialogues) and short chat rows."""

    def __init__(self, folder: Path, recipe: Recipe, device: str) -> None:
        rng = np.random.default_rng(recipe.seed)
        self._recipe = recipe
        self._library = Streams(load_array(folder / "library.npy.xz"), recipe.length, rng, device)
        self._packages = Streams(load_array(folder / "packages.npy.xz"), recipe.length, rng, device)
        self._dialogues = Rows(load_array(folder / "dialogues.npy.xz")[:, : recipe.length + 1], rng, device)
        self._chat = Rows(load_array(folder / "chat.npy.xz"), rng, device)

    def next(self) -> tuple[Batch, Batch]:
        recipe = self._recipe
        long = [
            self._library.rows(recipe.library_rows),
            self._packages.rows(recipe.package_rows),
            self._dialogues.rows(recipe.dialogue_rows),
        ]
        return as_batch(torch.cat(long)), as_batch(self._chat.rows(recipe.chat_rows))


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Linear warmup, constant, then linear to zero over the last `decay_share` of the steps."""
    warm = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    left = (recipe.steps - step) / max(1.0, recipe.decay_share * recipe.steps)
    return min(warm, left, 1.0)


def make_optimizers(model: EmbeddedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    vectors = [model.tok_embeddings, model.norm, model.attention_norm, model.ffn_norm]
    return [
        Muon(model.matrices(), lr=recipe.matrix_lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(vectors, lr=recipe.vector_lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0),
    ]


class GradientStep:
    """Forward and backward of one pair of batches, from a CUDA graph on a GPU; gives the two mean losses, [2]."""

    def __init__(self, model: EmbeddedModel, recipe: Recipe, example: tuple[Batch, Batch]) -> None:
        self._model = model
        self._recipe = recipe
        self._inputs = example
        self._graph: torch.cuda.CUDAGraph | None = None
        if example[0].tokens.is_cuda:
            self._capture()

    def __call__(self, batches: tuple[Batch, Batch]) -> Tensor:
        if self._graph is None:
            self._model.zero_grad(set_to_none=True)
            return self._backward(batches)
        for held, new in zip(self._inputs, batches, strict=True):
            held.tokens.copy_(new.tokens)
            held.targets.copy_(new.targets)
        self._graph.replay()
        return self._losses

    def _backward(self, batches: tuple[Batch, Batch]) -> Tensor:
        means, regularisers = [], []
        for batch in batches:
            nll, squares = self._model.losses(batch.tokens, batch.targets)
            count = (batch.targets >= 0).sum().clamp(min=1)
            means.append(nll / count)
            regularisers.append(squares / count)
        weights = (1.0, self._recipe.chat_weight)
        loss = sum(w * (m + self._recipe.z_loss * r) for w, m, r in zip(weights, means, regularisers, strict=True))
        loss.backward()  # type: ignore[union-attr]
        return torch.stack(means).detach()

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._model.zero_grad(set_to_none=True)
                self._backward(self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._model.zero_grad(set_to_none=True)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._losses = self._backward(self._inputs)


def train(corpus: Path, out: Path, shape: Shape, recipe: Recipe, device: str, seconds: float = math.inf) -> None:
    """Trains and writes params.json, consolidated.safetensors and training.json to `out`.

    `seconds` ends a trial early; the learning rate then never reached zero, so it is for speed tests only.
    """
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    cuda = device == "cuda"
    model = EmbeddedModel(shape, torch.bfloat16 if cuda else torch.float32).to(device)
    if cuda:
        model.compile()
    batches = Corpus(corpus, recipe, device)
    windows = json.loads((corpus / "tests.json").read_text(encoding="utf-8"))["held_out"]
    print(f"{shape.num_parameters:,} parameters, {recipe}", flush=True)
    gradient_step = GradientStep(model, recipe, batches.next())
    log = _run(model, batches, gradient_step, recipe, seconds, lambda: held_out_loss(model, windows))
    save_native(model, out)
    record = {"recipe": asdict(recipe), "parameters": shape.num_parameters, "torch": torch.__version__, "log": log}
    record["device"] = torch.cuda.get_device_name() if cuda else "cpu"
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _run(
    model: EmbeddedModel,
    batches: Corpus,
    gradient_step: GradientStep,
    recipe: Recipe,
    seconds: float,
    evaluate: Callable[[], float],
) -> list[dict[str, float]]:
    optimizers = make_optimizers(model, recipe)
    base = [[group["lr"] for group in o.param_groups] for o in optimizers]
    log: list[dict[str, float]] = []
    report_every = max(1, recipe.steps // 40)
    total = torch.zeros(2, device=model.tok_embeddings.device)
    started = time.perf_counter()
    for step in range(recipe.steps):
        factor = learning_rate_factor(step, recipe)
        for optimizer, rates in zip(optimizers, base, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        total += gradient_step(batches.next())
        for optimizer in optimizers:
            optimizer.step()
        done = step + 1
        if done % report_every == 0 or done == recipe.steps:
            source, chat = (total / report_every).tolist()
            total.zero_()
            elapsed = time.perf_counter() - started
            entry = {"step": done, "seconds": round(elapsed, 1), "source": round(source, 4), "chat": round(chat, 4)}
            if done % (4 * report_every) == 0 or done == recipe.steps:
                entry["held_out"] = round(evaluate(), 4)
            log.append(entry)
            print(entry, flush=True)
            if elapsed > seconds:
                break
    return log
