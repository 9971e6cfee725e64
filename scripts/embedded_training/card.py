"""Measurements of an exported checkpoint; its record (training.json) and its model card (README.md)."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from embedded_training.draft_evaluate import ANSWER_TOKENS, COMPLETION_TOKENS, PROMPT_TOKENS
from embedded_training.draft_stages import weights_hash
from embedded_training.draft_train import DraftRecipe
from embedded_training.evaluate import bits_per_byte, held_out_loss, scores
from embedded_training.model import load_native
from embedded_training.train import Recipe
from slipstream.errors import ConfigError

RECORD = "training.json"
DRAFT = "draft"  # folder beside the model's files
LOGGED_ROWS = 12

CARD = """\
# Slipstream's embedded model

A small language model that ships inside the package, so that every test and every first run has real weights and real
text. It is a dense transformer in Mistral's native layout (`params.json`, `consolidated.safetensors`, `tekken.json`
{tekken_version}), trained from nothing by the scripts of this repository. It continues Python source, and it answers
questions about names of the Python standard library with the first sentence of their docstrings:

    What does textwrap.dedent do?  ->  Remove any common leading whitespace from every line in `text`.

It is a demonstration, not an assistant: it knows those sentences by heart, answers "{unknown}" to most
other names, and knows nothing else.

## Architecture

{architecture}

{parameters} parameters, stored in bf16 ({weight_mib:.1f} MiB). Grouped-query attention, SwiGLU, RMS norm, interleaved
rotary embedding, output tied to the embedding. The tokenizer is a byte-level BPE of {vocab_size} ids, {num_special} of
them special, trained on the same text with Mistral's split pattern.

## Measurements

On the exported bf16 weights, with {arithmetic} arithmetic.

| Held-out standard library source | |
|---|---|
| files, never trained on | {held_out_files} |
| tokens | {held_out_tokens:,} |
| loss, nats per token | {nats:.3f} |
| loss, bits per byte | {bits:.3f} |

Files were chosen by a hash of seed and path. Every line that stands in a run of {window_lines} lines of a held-out
file was removed from all training text, and held-out files gave no questions. A window is `<s>` and at most
{window_tokens} tokens. The files:

{held_out_paths}

| Greedy answers, right to the last token and ended there | right | asked |
|---|---|---|
{scores}

The first rows ask for {scored} names chosen by the seed, all of which were trained on: this measures recall. The last
two rows ask for names of other packages, for made-up ones, and for real names from held-out files; there
"{unknown}" is the right answer.

## Training

{recipe}

{device}, PyTorch {torch}, {minutes:.1f} minutes. Muon for the layers' matrices, AdamW for embeddings and norms, linear
warmup, constant rate, linear decay to zero; master weights in fp32, everything else in bf16.

| Step | seconds | source loss | answer loss | held-out loss |
|---|---|---|---|---|
{log}

## Data

Python source only: no tests, no generated files, no tables, no copies. Questions are made of {items} documented
public names of the standard library of {python} (read by `ast`; for compiled modules from the objects), in
many phrasings, with and without a system prompt, in one and in many turns, with some small talk and
{unknown_percent:.0f} % of unknown names.

| Array | shape, in tokens |
|---|---|
{arrays}

| Text | version | licence | files | KiB |
|---|---|---|---|---|
{sources}

## Reproduce

    pip install --target SOURCES --no-deps --only-binary=:all: -r scripts/embedded_training/packages.txt
    python scripts/train_embedded.py corpus --out CORPUS --packages SITE_PACKAGES SOURCES --seed {seed}
    python scripts/train_embedded.py train --corpus CORPUS --out CHECKPOINT{train_flags}
    python scripts/train_embedded.py evaluate --corpus CORPUS --checkpoint CHECKPOINT
    python scripts/train_embedded.py install --corpus CORPUS --checkpoint CHECKPOINT --out python/slipstream/embedded

The corpus depends on the exact Python and package versions above. `train` needs a GPU for this recipe; it runs on a
CPU with `--device cpu` and smaller numbers. `scripts/eval_embedded.py` repeats both measurements through a running
server.

{note}
"""

DRAFT_CARD = """\
# The draft

Beside the model, in `draft/`, lies a draft for speculative decoding, with which the model is served by default: a
Mistral EAGLE draft with grouped-query attention in Mistral's native layout (`params.json`, and
`consolidated.safetensors` with `eagle_linear`). Its row t joins the embedding of token t + 1 and the model's hidden
state of token t after the final norm, and predicts token t + 2; its own output takes the place of the hidden state
where it goes on alone. Embedding and head are the model's.

| `draft/params.json`, where it differs |  |
|---|---|
{architecture}

{parameters} parameters, stored in bf16 ({mib:.2f} MiB).

## Acceptance

On the exported bf16 weights: greedy, {drafts} drafts in each step, {arithmetic} arithmetic. Acceptance length is the
mean number of tokens that a step gives: the drafts that hold, and one more from the model itself. It is counted twice:
with all drafts that hold, and without those that come after the reply's end.

| Prompts | number | steps | acceptance length | within the reply | first, second, third draft accepted |
|---|---|---|---|---|---|
{acceptance}

Questions are the first of the names above, in the default phrasing, with at most {answer_tokens} tokens of answer;
source are random beginnings of the held-out files, {shortest} to {longest} tokens long, and {completion_tokens} tokens
after each.

## Training of the draft

| Recipe |  |
|---|---|
{recipe}

{device}, PyTorch {torch}, {steps:,} steps in {seconds:.0f} seconds. Source was cut at random places and continued by
the model itself, and questions were answered by it. The draft is held against the model's distribution after each
token, by cross-entropy, and against its hidden states, by smooth L1, over {unrolled} unrolled steps; after the first of
them it reads its own output.

| Step | seconds | source loss | long loss | answer loss | accepted, questions | accepted, source |
|---|---|---|---|---|---|---|
{log}

Losses are those of the first unrolled step.

    python scripts/train_embedded.py --draft --corpus CORPUS --out DRAFT{flags}
    python scripts/train_embedded.py evaluate-draft --corpus CORPUS --checkpoint DRAFT
    python scripts/train_embedded.py install-draft --checkpoint DRAFT

Training ends by the clock, so another machine gives other weights. `docs_new/training-a-draft.mdx` tells how to train a
draft for another target.

{note}
"""


def measure(corpus: Path, checkpoint: Path, device: str, dtype: str) -> None:
    """Both measurements on the exported bf16 weights; prints them and writes measurements.json beside the weights."""
    manifest, tests = _read(corpus / "manifest.json"), _read(corpus / "tests.json")
    model = load_native(checkpoint, getattr(torch, dtype), device)
    loss = held_out_loss(model, tests["held_out"])
    held_out = manifest["held_out"]
    found = {
        "arithmetic": dtype,
        "held_out_nats_per_token": round(loss, 4),
        "held_out_bits_per_byte": round(bits_per_byte(loss, held_out["tokens"], held_out["bytes"]), 4),
        "right_answers": scores(model, tests["questions"]),
    }
    for name, value in found.items():
        print(f"{name}: {value}", flush=True)
    _write(checkpoint / "measurements.json", found)


def install(corpus: Path, checkpoint: Path, out: Path, note: str) -> None:
    """Copies the model's files to `out`, writes the record and the card from what the stages left behind.

    `note` says what a reader must know of these weights beyond the measurements; it may be empty.
    """
    out.mkdir(parents=True, exist_ok=True)
    for source in (checkpoint / "params.json", checkpoint / "consolidated.safetensors", corpus / "tekken.json"):
        shutil.copyfile(source, out / source.name)
        (out / source.name).chmod(0o644)
    record = {
        **_read(corpus / "manifest.json"),
        "training": _read(checkpoint / RECORD),
        "measurements": _read(checkpoint / "measurements.json"),
        "note": note,
    }
    _write(out / RECORD, record)
    write_card(out)


def install_draft(checkpoint: Path, out: Path, note: str) -> None:
    """Copies a draft's files beside the model in `out`, writes its record, and the card anew.

    `note` is what a reader must know beyond the measurements; it may be empty. Raises ConfigError where the draft was
    not measured with this very model.
    """
    measured = _read(checkpoint / "measurements.json")
    if measured["target_sha256"] != weights_hash(out):
        raise ConfigError(
            f"{checkpoint} was measured with another model than {out}: run evaluate-draft with --target {out}"
        )
    folder = out / DRAFT
    folder.mkdir(exist_ok=True)
    for name in ("params.json", "consolidated.safetensors"):
        shutil.copyfile(checkpoint / name, folder / name)
        (folder / name).chmod(0o644)
    training = _read(checkpoint / "draft_training.json")
    _write(folder / RECORD, {"training": training, "measurements": measured, "note": note})
    write_card(out)


def write_card(folder: Path) -> None:
    """The model's card, and the draft's below it where there is one that was made for these weights."""
    text = model_card(_read(folder / RECORD), folder)
    if (folder / DRAFT / RECORD).exists():
        record = _read(folder / DRAFT / RECORD)
        if record["measurements"]["target_sha256"] == weights_hash(folder):
            text += "\n" + draft_card(record, folder)
        else:
            print(f"{folder / DRAFT} was made for other weights: train it anew, then install-draft", flush=True)
    (folder / "README.md").write_text(text, encoding="utf-8")


def draft_card(record: dict[str, Any], folder: Path) -> str:
    """The draft's part of the card; `folder` is the model's."""
    training, measured, draft = record["training"], record["measurements"], folder / DRAFT
    params, targets = _read(draft / "params.json"), _read(folder / "params.json")
    log = [entry for entry in training["log"] if "accepted_source" in entry]
    text = DRAFT_CARD.format(
        architecture=_rows((key, value) for key, value in params.items() if targets.get(key) != value),
        parameters=f"{training['parameters']:,}",
        mib=(draft / "consolidated.safetensors").stat().st_size / 2**20,
        drafts=measured["drafts"],
        arithmetic=measured["arithmetic"],
        acceptance=_rows(_acceptance_row(name, measured[name]) for name in ("questions", "source")),
        answer_tokens=ANSWER_TOKENS,
        shortest=PROMPT_TOKENS[0],
        longest=PROMPT_TOKENS[1],
        completion_tokens=COMPLETION_TOKENS,
        recipe=_rows(training["recipe"].items()),
        device=training["device"],
        torch=training["torch"],
        steps=training["log"][-1]["step"],
        seconds=training["log"][-1]["seconds"],
        unrolled=training["recipe"]["unrolled_steps"],
        log=_rows(_draft_log_row(entry) for entry in log),
        flags=_flags(training["recipe"], DraftRecipe),
        note=textwrap.fill(record["note"], 120, break_on_hyphens=False),
    )
    return text.rstrip() + "\n"


def _acceptance_row(name: str, found: dict[str, Any]) -> tuple[object, ...]:
    shares = ", ".join(f"{100 * share:.1f} %" for share in found["per_position"])
    return name, found["prompts"], found["steps"], f"{found['length']:.2f}", f"{found['length_in_reply']:.2f}", shares


def _draft_log_row(entry: dict[str, Any]) -> tuple[object, ...]:
    losses = (entry[part][0] for part in ("source", "long", "chat"))
    return entry["step"], entry["seconds"], *losses, entry["accepted_questions"], entry["accepted_source"]


def model_card(record: dict[str, Any], folder: Path) -> str:
    """The card's text, every number taken from the record and from the files in `folder`."""
    from embedded_training.corpus import HELD_OUT_WINDOW, SCORED_QUESTIONS
    from embedded_training.questions import UNKNOWN_SHARE
    from embedded_training.small_talk import UNKNOWN_NAME
    from embedded_training.split import WINDOW_LINES

    training, measured, held_out = record["training"], record["measurements"], record["held_out"]
    config = _read(folder / "tekken.json")["config"]
    params = _read(folder / "params.json")
    text = CARD.format(
        tekken_version=config["version"],
        unknown=UNKNOWN_NAME,
        architecture=_table(("`params.json`", ""), params.items()),
        parameters=f"{training['parameters']:,}",
        weight_mib=(folder / "consolidated.safetensors").stat().st_size / 2**20,
        vocab_size=config["default_vocab_size"],
        num_special=config["default_num_special_tokens"],
        arithmetic=measured["arithmetic"],
        held_out_files=len(held_out["files"]),
        held_out_paths=textwrap.fill(", ".join(held_out["files"]), 118, break_on_hyphens=False),
        held_out_tokens=held_out["tokens"],
        nats=measured["held_out_nats_per_token"],
        bits=measured["held_out_bits_per_byte"],
        window_lines=WINDOW_LINES,
        window_tokens=HELD_OUT_WINDOW,
        scores=_rows((name, *counts) for name, counts in measured["right_answers"].items()),
        scored=SCORED_QUESTIONS,
        recipe=_table(("Recipe", ""), training["recipe"].items()),
        device=training["device"],
        torch=training["torch"],
        minutes=training["log"][-1]["seconds"] / 60,
        log=_rows(_log_rows(training["log"])),
        items=record["items"],
        python=record["python"],
        unknown_percent=100 * UNKNOWN_SHARE,
        arrays=_rows((name, " x ".join(f"{n:,}" for n in shape)) for name, shape in record["arrays"].items()),
        sources=_rows(_source_rows(record)),
        seed=record["seed"],
        note=record["note"],
        train_flags=_flags(training["recipe"], Recipe),
    )
    return text.rstrip() + "\n"


def _flags(recipe: dict[str, Any], kind: type[Recipe] | type[DraftRecipe]) -> str:
    """The options that give this recipe: those that differ from the defaults."""
    differing = {k: v for k, v in recipe.items() if v != getattr(kind, k)}
    return "".join(f" --{k.replace('_', '-')} {v}" for k, v in differing.items())


def _log_rows(log: Sequence[dict[str, float]]) -> list[tuple[object, ...]]:
    measured = [entry for entry in log if "held_out" in entry]
    every = max(1, len(measured) // LOGGED_ROWS)
    chosen = [*measured[every - 1 : -1 : every], measured[-1]]
    return [(e["step"], e["seconds"], e["source"], e["chat"], e["held_out"]) for e in chosen]


def _source_rows(record: dict[str, Any]) -> list[tuple[object, ...]]:
    version = record["python"].split()[-1]
    library = (
        "Python standard library",
        version,
        "PSF-2.0",
        record["library"]["files"],
        record["library"]["bytes"] // 1024,
    )
    packages = record["packages"]
    return [library, *((p["name"], p["version"], p["licence"], p["files"], p["num_bytes"] // 1024) for p in packages)]


def _table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    head = list(head)
    return "\n".join((_rows([head]), "|" + "---|" * len(head), _rows(rows)))


def _rows(rows: Iterable[Iterable[object]]) -> str:
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
