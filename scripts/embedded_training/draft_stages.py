"""The stages of a draft: make its rows, train it, measure it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from embedded_training.draft_batches import CorpusArrays, LongRows, Pool, answered_questions, joined, written_rows
from embedded_training.draft_evaluate import AcceptanceTest, replayed, unrolled
from embedded_training.draft_model import DraftModel, load_draft
from embedded_training.draft_target import EmbeddedTarget
from embedded_training.draft_train import DraftRecipe, Part, draft_shape, train_draft


@dataclass(frozen=True)
class RowSizes:
    """How many rows there are and how long; every batch should have the same number of tokens, for the compiler."""

    batch_tokens: int = 16384
    source_length: int = 512
    source_batches: int = 2
    long_length: int = 2048
    chat_length: int = 128
    written_rows: int = 98304  # continued by the target
    chat_rows: int = 40960
    at_once: int = 8192  # rows that the target continues together
    write_seconds: float = 60.0


def corpus_parts(target: EmbeddedTarget, corpus: CorpusArrays, sizes: RowSizes, device: str) -> list[Part]:
    """Rows of a corpus folder, most of them continued by the target."""
    started = time.perf_counter()
    tokens, weights = written_rows(
        target, corpus, sizes.written_rows, sizes.at_once, sizes.source_length, sizes.write_seconds, device
    )
    print(f"source: {tuple(tokens.shape)} rows written after {time.perf_counter() - started:.1f} s", flush=True)
    source = Pool(tokens, weights, sizes.batch_tokens // sizes.source_length, corpus.rng)
    stored = corpus.chat[corpus.rng.permutation(len(corpus.chat))[: sizes.chat_rows], : sizes.chat_length]
    chunks = range(0, len(stored), sizes.at_once)
    answered = [answered_questions(target, stored[i : i + sizes.at_once], corpus.rng, device) for i in chunks]
    chat = Pool(*joined(answered), sizes.batch_tokens // sizes.chat_length, corpus.rng)
    print(f"chat: {sum(len(t) for t, _ in answered)} rows after {time.perf_counter() - started:.1f} s", flush=True)
    rows = max(3, sizes.batch_tokens // sizes.long_length)
    long = LongRows(corpus, sizes.long_length, (rows - 2, 1, 1), device)
    return [Part("source", source, 1.0, sizes.source_batches), Part("long", long, 0.3), Part("chat", chat, 0.2)]


def measurement(target: EmbeddedTarget, tests: AcceptanceTest) -> Callable[[DraftModel], dict[str, Any]]:
    """Acceptance lengths of a draft in training, from an uncompiled twin of it."""

    def measure(draft: DraftModel) -> dict[str, Any]:
        twin = DraftModel(draft.shape, draft.compute_dtype).to(target.head.device)
        twin.load_state_dict(draft.state_dict())
        return {f"accepted_{name}": unrolled(target, twin, replies).length for name, replies in tests.replies.items()}

    return measure


def train_on_corpus(
    folder: Path,
    corpus: Path,
    out: Path,
    size: tuple[int, int],
    sizes: RowSizes,
    recipe: DraftRecipe,
    device: str,
    wall_seconds: float,
) -> None:
    """Trains a draft of `size` (layers, width of the feed-forward part) for the target in `folder`.

    All of it, but for the import of torch, takes `wall_seconds` at most.
    """
    deadline = time.perf_counter() + wall_seconds
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    plain, target = EmbeddedTarget(folder, dtype, device), EmbeddedTarget(folder, dtype, device)
    if device == "cuda":
        target.compile()
    torch.manual_seed(recipe.seed)
    parts = corpus_parts(plain, CorpusArrays(corpus, recipe.seed), sizes, device)
    tests = AcceptanceTest(plain, json.loads((corpus / "tests.json").read_text(encoding="utf-8")))
    train_draft(target, draft_shape(target, *size), parts, recipe, out, measurement(plain, tests), deadline)


def measure_draft(
    folder: Path, draft_folder: Path, corpus: Path, device: str, dtype: str, limit: int | None
) -> dict[str, Any]:
    """Acceptance lengths of an exported draft; prints them and writes measurements.json beside its weights."""
    torch.set_float32_matmul_precision("highest")
    target = EmbeddedTarget(folder, getattr(torch, dtype), device)
    draft = load_draft(draft_folder, getattr(torch, dtype), device)
    tests = AcceptanceTest(target, json.loads((corpus / "tests.json").read_text(encoding="utf-8")), limit=limit)
    found: dict[str, Any] = {"arithmetic": dtype, "drafts": 3}
    for name, replies in tests.replies.items():
        found[name] = asdict(replayed(target, draft, replies))
        print(f"{name}: {found[name]}", flush=True)
    (draft_folder / "measurements.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found
