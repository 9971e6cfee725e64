"""The stages of a draft: make its rows, train it, measure it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedded_training.draft_batches import (
    CorpusArrays,
    LongRows,
    Pool,
    answered_questions,
    joined,
    source_prompts,
    written_rows,
)
from embedded_training.draft_evaluate import Replies, acceptance, corpus_replies
from embedded_training.draft_model import DraftModel, load_draft
from embedded_training.draft_params import draft_params
from embedded_training.draft_target import EmbeddedTarget, Target
from embedded_training.draft_train import DraftRecipe, Part, log_line, train_draft

DRAFTS = 3  # per step, wherever acceptance is measured
HELD_OUT_SHARE = 0.05  # of --text, for the measurements during training
EMBEDDED_HIDDEN_DIM = 1472  # with two layers: a draft of 4 MiB


@dataclass(frozen=True)
class RowSizes:
    """How many rows there are and how long; every batch should have the same number of tokens, for the compiler.

    The defaults are those of the embedded draft.
    """

    batch_tokens: int = 16384
    source_length: int = 512
    source_batches: int = 2
    long_length: int = 2048
    chat_length: int = 128
    written_rows: int = 98304  # continued by the target
    chat_rows: int = 40960
    at_once: int = 8192  # rows that the target continues together
    write_seconds: float = 60.0
    measured: int = 100  # prompts of each kind for the measurements during training


TEXT_SIZES = RowSizes(
    source_length=1024, source_batches=1, chat_length=1024, written_rows=16384, at_once=1024, write_seconds=600.0
)  # of targets that are not the embedded model
CPU_SIZES = RowSizes(
    batch_tokens=1024,
    source_length=128,
    source_batches=1,
    long_length=256,
    written_rows=128,
    chat_rows=256,
    at_once=16,
    write_seconds=60.0,
    measured=8,
)  # for a trial on a CPU


def corpus_parts(target: EmbeddedTarget, corpus: CorpusArrays, sizes: RowSizes, device: str) -> list[Part]:
    """Rows of a corpus folder, most of them continued by the target."""
    started, least = time.perf_counter(), sizes.batch_tokens // sizes.source_length
    tokens, weights = written_rows(
        target,
        lambda count: source_prompts(corpus, count, sizes.source_length, 0.2).to(device),
        (least, sizes.written_rows, sizes.at_once),
        sizes.write_seconds,
        corpus.rng,
    )
    source = Pool(tokens, weights, min(least, len(tokens)), corpus.rng)
    stored = corpus.chat[corpus.rng.permutation(len(corpus.chat))[: sizes.chat_rows], : sizes.chat_length]
    chunks = range(0, len(stored), sizes.at_once)
    print(f"the target answers {len(stored):,} questions", flush=True)
    answered = [answered_questions(target, stored[i : i + sizes.at_once], corpus.rng, device) for i in chunks]
    chat = Pool(*joined(answered), sizes.batch_tokens // sizes.chat_length, corpus.rng)
    print(f"rows are written after {time.perf_counter() - started:.1f} s", flush=True)
    rows = max(3, sizes.batch_tokens // sizes.long_length)
    long = LongRows(corpus, sizes.long_length, (rows - 2, 1, 1), device)
    return [Part("source", source, 1.0, sizes.source_batches), Part("long", long, 0.3), Part("chat", chat, 0.2)]


def measurement(target: Target, tests: dict[str, Replies]) -> Callable[[DraftModel], dict[str, Any]]:
    """Acceptance lengths of a draft in training, from an uncompiled twin of it."""

    def measure(draft: DraftModel) -> dict[str, Any]:
        twin = DraftModel(draft.params, draft.compute_dtype, target.head.device)
        twin.load_state_dict(draft.state_dict())
        return {f"accepted_{name}": acceptance(target, twin, replies).length for name, replies in tests.items()}

    return measure


def train_on_corpus(
    folder: Path,
    corpus: Path,
    out: Path,
    size: tuple[int, int | None],
    sizes: RowSizes,
    recipe: DraftRecipe,
    device: str,
    wall_seconds: float,
) -> None:
    """Trains a draft of `size` (layers, width of the feed-forward part) for the embedded target in `folder`.

    All of it, but for the import of torch, takes `wall_seconds` at most.
    """
    started = time.perf_counter()
    dtype = _dtype(device)
    plain, target = EmbeddedTarget(folder, dtype, device), EmbeddedTarget(folder, dtype, device)
    if device == "cuda":
        target.compile()
    params = draft_params(target.params, size[0], size[1] or EMBEDDED_HIDDEN_DIM)
    torch.manual_seed(recipe.seed)
    parts = corpus_parts(plain, CorpusArrays(corpus, recipe.seed), sizes, device)
    tests = corpus_replies(plain, read_tests(corpus), limit=sizes.measured)
    notes = _notes(folder, sizes, time.perf_counter() - started)
    train_draft(target, params, parts, recipe, out, measurement(plain, tests), started + wall_seconds, notes)


def train_on_text(
    folder: Path,
    paths: Sequence[Path],
    out: Path,
    size: tuple[int, int | None],
    sizes: RowSizes,
    recipe: DraftRecipe,
    device: str,
    wall_seconds: float,
) -> None:
    """The same for any target that Slipstream can serve, on files of text and conversations."""
    from embedded_training.draft_loaded_target import LoadedTarget, target_spec
    from embedded_training.draft_text import PlainRows, answered_chats, read_text, text_replies

    started = time.perf_counter()
    spec = target_spec(folder)
    corpus, held_out = read_text(paths, spec, recipe.seed).split(HELD_OUT_SHARE)
    target = LoadedTarget(spec, _dtype(device), device)
    params = draft_params(target.params, size[0], size[1] or target.params["hidden_dim"])
    torch.manual_seed(recipe.seed)
    rng, context = np.random.default_rng(recipe.seed), spec.context_length
    seconds = sizes.write_seconds / (2 if corpus.chats else 1)
    lengths = [min(length, context) for length in (sizes.source_length, sizes.long_length, sizes.chat_length)]
    counts = [max(1, sizes.batch_tokens // length) for length in lengths]
    at_once = target.at_once(lengths[0], sizes.at_once)
    written = written_rows(
        target,
        lambda count: corpus.rows(count, lengths[0], rng).to(device),
        (counts[0], sizes.written_rows, at_once),
        seconds,
        rng,
    )
    pool = Pool(*written, min(counts[0], len(written[0])), rng)
    parts = [Part("text", pool, 1.0, sizes.source_batches)]
    parts.append(Part("long", PlainRows(corpus, (counts[1], lengths[1]), rng, device), 0.3))
    if corpus.chats:
        at_once = target.at_once(lengths[2], sizes.at_once)
        answered = joined(answered_chats(target, corpus, (sizes.chat_rows, lengths[2]), at_once, seconds, device))
        parts.append(Part("chat", Pool(*answered, min(counts[2], len(answered[0])), rng), 1.0))
    tests = text_replies(target, held_out, context, recipe.seed, sizes.measured)
    notes = _notes(folder, sizes, time.perf_counter() - started)
    train_draft(target, params, parts, recipe, out, measurement(target, tests), started + wall_seconds, notes)


def measure_on_corpus(
    folder: Path, draft_folder: Path, corpus: Path, device: str, dtype: str, limit: int | None
) -> dict[str, Any]:
    """Acceptance lengths of an exported draft of the embedded target; prints them and writes measurements.json beside
    its weights.
    """
    target = EmbeddedTarget(folder, getattr(torch, dtype), device)
    replies = corpus_replies(target, read_tests(corpus), limit=limit)
    return _measure(folder, target, draft_folder, replies, dtype)


def measure_on_text(
    folder: Path, draft_folder: Path, paths: Sequence[Path], device: str, dtype: str, limit: int | None
) -> dict[str, Any]:
    """The same for any target, on text that should be none that the draft was trained on."""
    from embedded_training.draft_loaded_target import LoadedTarget, target_spec
    from embedded_training.draft_text import read_text, text_replies

    spec = target_spec(folder)
    corpus = read_text(paths, spec, 1)
    target = LoadedTarget(spec, getattr(torch, dtype), device)
    replies = text_replies(target, corpus, spec.context_length, 1, limit)
    return _measure(folder, target, draft_folder, replies, dtype)


def _measure(folder: Path, target: Target, draft_folder: Path, tests: dict[str, Replies], dtype: str) -> dict[str, Any]:
    torch.set_float32_matmul_precision("highest")
    draft = load_draft(draft_folder, getattr(torch, dtype), str(target.head.device))
    found: dict[str, Any] = {"arithmetic": dtype, "drafts": DRAFTS, "target_sha256": weights_hash(folder)}
    for name, replies in tests.items():
        found[name] = {"prompts": len(replies.tokens)} | asdict(acceptance(target, draft, replies, DRAFTS))
        print(f"{name}: {log_line(found[name])}", flush=True)
    (draft_folder / "measurements.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def read_tests(corpus: Path) -> dict[str, Any]:
    """The questions and the held-out windows of a corpus folder."""
    tests: dict[str, Any] = json.loads((corpus / "tests.json").read_text(encoding="utf-8"))
    return tests


def weights_hash(folder: Path) -> str:
    """SHA-256 over a checkpoint's weights, which tells a later reader whether a draft belongs to them."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("consolidated*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(2**24):
                digest.update(block)
    return digest.hexdigest()


def _dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


def _notes(folder: Path, sizes: RowSizes, seconds: float) -> dict[str, Any]:
    """What the record says besides the recipe."""
    return {"target_sha256": weights_hash(folder), "rows": asdict(sizes), "write_seconds": round(seconds, 1)}
