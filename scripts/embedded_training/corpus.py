"""The corpus stage: text and questions -> `tekken.json`, token arrays, and the two published tests.

Everything written is described by `manifest.json`. Arrays are uint16 tokens with `TARGET_FLAG` set in those that are
predicted, xz-compressed .npy files:

    library, packages   [tokens]       <s> file </s> <s> file </s> ...
    chat                [rows, 129]    one or two turns in each row
    dialogues           [rows, 2049]   many turns in each row
"""

from __future__ import annotations

import json
import platform
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from embedded_training import bpe
from embedded_training.chat import ChatEncoder, assert_equals_mistral_common, chat_rows
from embedded_training.docstrings import Item, collect_items, defined_names, names_by_package
from embedded_training.questions import (
    CALL_PHRASINGS,
    DEFAULT_PHRASING,
    PHRASINGS,
    SYSTEM_PROMPTS,
    Conversation,
    Names,
    QuestionMaker,
    Turn,
    UnknownNames,
    ask,
    phrasings_of,
    sampled_items,
    short_names,
)
from embedded_training.small_talk import UNKNOWN_NAME
from embedded_training.sources import STDLIB, Package, SourceFile, package_files, stdlib_files
from embedded_training.split import seeded_order, split_held_out, without_copies_of, without_repeats
from embedded_training.tokens import BOS, EOS, TARGET_FLAG, save_array

ROW_TOKENS = 2048
CHAT_ROW_TOKENS = 128
HELD_OUT_WINDOW = 2046
SCORED_QUESTIONS = 200
BPE_SAMPLE_BYTES = 40_000_000


@dataclass(frozen=True)
class Library:
    """The standard library as this project uses it: what is trained on, what is held out, what is asked."""

    training: list[SourceFile]
    held_out: list[SourceFile]
    items: list[Item]


@dataclass(frozen=True)
class Question:
    """One scored question: token ids of the prompt and of the right answer with its end token."""

    phrasing: str
    name: str
    prompt: list[int]
    answer: list[int]


def read_library(seed: int) -> Library:
    """The library of the running Python, split by the seed. Held-out files give no questions."""
    training, held_out = split_held_out(stdlib_files(), seed)
    return Library(training, held_out, collect_items(training))


def python_name() -> str:
    """The Python whose library is read, as recorded in the manifest: implementation and full version."""
    return f"{platform.python_implementation()} {platform.python_version()}"


def held_out_windows(files: Sequence[SourceFile], encoder: bpe.TextEncoder) -> list[list[int]]:
    """Token ids of each file in consecutive windows of at most `HELD_OUT_WINDOW` tokens, each begun with <s>."""
    windows: list[list[int]] = []
    for ids in encoder.encode_many([f.text for f in files]):
        windows += [[BOS, *ids[i : i + HELD_OUT_WINDOW]] for i in range(0, len(ids), HELD_OUT_WINDOW)]
    return windows


def scored_questions(library: Library, unknown: UnknownNames, encoder: ChatEncoder, seed: int) -> list[Question]:
    """`SCORED_QUESTIONS` sampled items in every phrasing, the default one also with a system prompt and as second turn.

    Unknown names and names from held-out files follow, with "I do not know that name." as the right answer.
    """
    items = sampled_items(library.items, seed, SCORED_QUESTIONS)
    default = _label(DEFAULT_PHRASING)
    questions = []
    for template in PHRASINGS + CALL_PHRASINGS:
        asked = [item for item in items if template in phrasings_of(item)]
        questions += [_single(encoder, _label(template), template, item) for item in asked]
    system_label = f"{default} (with a system prompt)"
    questions += [_single(encoder, system_label, DEFAULT_PHRASING, item, SYSTEM_PROMPTS[0]) for item in items]
    for previous, item in zip(items[1:] + items[:1], items, strict=True):
        turns = (Turn(ask(DEFAULT_PHRASING, previous), previous.answer), Turn(ask(DEFAULT_PHRASING, item), item.answer))
        questions.append(_question(encoder, f"{default} (second turn)", item, Conversation(None, "none", turns)))
    short = short_names(library.items)
    shortened = [Item(short[i.name], i.kind, i.answer) for i in items if i.name in short]
    questions += [_single(encoder, f"{default} (short name)", DEFAULT_PHRASING, item) for item in shortened]
    return questions + _unanswerable(library, unknown, encoder, seed)


def _label(template: str) -> str:
    return template.format(n="X", k="function")


def _unanswerable(library: Library, unknown: UnknownNames, encoder: ChatEncoder, seed: int) -> list[Question]:
    rng = random.Random(seed)
    made_up = [unknown.draw(rng, for_test=True) for _ in range(SCORED_QUESTIONS)]
    known = {item.name for item in library.items}
    real = [i for i in collect_items(library.held_out) if i.name not in known]
    unseen = [Item(i.name, i.kind, UNKNOWN_NAME) for i in sampled_items(real, seed, SCORED_QUESTIONS)]
    return [
        *(_single(encoder, "unknown name", DEFAULT_PHRASING, item) for item in made_up),
        *(_single(encoder, "held-out name", DEFAULT_PHRASING, item) for item in unseen),
    ]


def _single(encoder: ChatEncoder, phrasing: str, template: str, item: Item, system: str | None = None) -> Question:
    turns = (Turn(ask(template, item), item.answer),)
    return _question(encoder, phrasing, item, Conversation(system, "none", turns))


def _question(encoder: ChatEncoder, phrasing: str, item: Item, conversation: Conversation) -> Question:
    return Question(phrasing, item.name, encoder.prompt(conversation), encoder.answer(item.answer))


def build_corpus(out: Path, folders: Sequence[Path], seed: int, rows: tuple[int, int], max_package_bytes: int) -> None:
    """Writes the whole corpus to `out`; `rows` are the counts of chat rows and dialogue rows."""
    out.mkdir(parents=True, exist_ok=True)
    library = read_library(seed)
    texts, packages = package_files(folders, max_package_bytes)
    library_text = without_copies_of(library.training, library.held_out)
    unique = without_repeats([*library_text, *without_copies_of(texts, library.held_out)])
    package_text = [file for file in unique if file.origin != STDLIB]
    package_text.sort(key=lambda f: seeded_order(seed, f.origin + f.path))
    names = Names(library.items, names_by_package(library.training + library.held_out), defined_names(texts))
    print(f"{len(library_text)} library files, {len(package_text)} others, {len(library.items)} items", flush=True)

    _write_tokenizer(out / "tekken.json", library_text, package_text, library.items)
    encoder = bpe.TextEncoder(out / "tekken.json")
    streams = {"library": _stream(encoder, library_text), "packages": _stream(encoder, package_text)}
    streams |= _chat_streams(QuestionMaker(names, seed), encoder, out / "tekken.json", rows, seed)
    for name, array in streams.items():
        save_array(out / f"{name}.npy.xz", array)
        print(f"{name}: {array.shape}, {(out / f'{name}.npy.xz').stat().st_size / 2**20:.1f} MiB", flush=True)
    windows = held_out_windows(library.held_out, encoder)
    chat = ChatEncoder(encoder)
    questions = [asdict(q) for q in scored_questions(library, UnknownNames(names, seed), chat, seed)]
    (out / "tests.json").write_text(json.dumps({"held_out": windows, "questions": questions}), encoding="utf-8")
    used = _still_used(packages, package_text)
    _write_json(out / "manifest.json", _manifest(library, library_text, used, streams, windows, seed))


def _write_tokenizer(path: Path, library: list[SourceFile], packages: list[SourceFile], items: list[Item]) -> None:
    texts = [f.text for f in library] * 2
    texts += [ask(DEFAULT_PHRASING, item) + "\n" + item.answer for item in items] * 2
    size = 0
    for file in packages:
        size += len(file.text)
        if size > BPE_SAMPLE_BYTES:
            break
        texts.append(file.text)
    ranks = bpe.train_ranks(texts)
    if dead := bpe.dead_tokens(ranks):
        raise ValueError(f"{len(dead)} tokens cannot be reached by merges, the first is {dead[0]!r}")
    document = bpe.tekken_document(ranks)
    path.write_text(json.dumps(document, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def _stream(encoder: bpe.TextEncoder, files: list[SourceFile]) -> np.ndarray:
    parts: list[np.ndarray] = []
    for ids in encoder.encode_many([f.text for f in files]):
        parts.append(np.array([BOS, *(i | TARGET_FLAG for i in ids), EOS | TARGET_FLAG], dtype=np.uint16))
    return np.concatenate(parts)


def _chat_streams(
    maker: QuestionMaker, encoder: bpe.TextEncoder, tekken: Path, rows: tuple[int, int], seed: int
) -> dict[str, np.ndarray]:
    chat = ChatEncoder(encoder)
    turns = [[maker.turn() for _ in range(1 + i % 4)] for i in range(200)]
    assert_equals_mistral_common(chat, tekken, [maker.conversation(t) for t in turns])
    return {
        "chat": chat_rows(maker, chat, rows[0], CHAT_ROW_TOKENS + 1, lambda rng: rng.choice((1, 2)), seed),
        "dialogues": chat_rows(maker, chat, rows[1], ROW_TOKENS + 1, lambda rng: rng.randint(2, 40), seed),
    }


def _still_used(packages: list[Package], files: list[SourceFile]) -> list[Package]:
    sizes: dict[str, list[int]] = {}
    for file in files:
        sizes.setdefault(file.origin, []).append(len(file.text.encode()))
    return [Package(p.name, p.version, p.licence, len(s), sum(s)) for p in packages if (s := sizes.get(p.name))]


def _manifest(
    library: Library,
    library_text: list[SourceFile],
    packages: list[Package],
    streams: dict[str, np.ndarray],
    windows: list[list[int]],
    seed: int,
) -> dict[str, object]:
    return {
        "python": python_name(),
        "seed": seed,
        "vocab_size": bpe.VOCAB_SIZE,
        "library": {"files": len(library_text), "bytes": sum(len(f.text.encode()) for f in library_text)},
        "held_out": {
            "files": [f.path for f in library.held_out],
            "bytes": sum(len(f.text.encode()) for f in library.held_out),
            "tokens": sum(len(w) - 1 for w in windows),
        },
        "items": len(library.items),
        "arrays": {name: list(array.shape) for name, array in streams.items()},
        "packages": [asdict(p) for p in packages],
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
