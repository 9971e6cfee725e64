"""Held-out files, and removal of copies: of held-out text everywhere, and of repeated text among the training files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from embedded_training.sources import SourceFile

HELD_OUT_SHARE = 0.05
HELD_OUT_BYTES = (4_000, 80_000)
WINDOW_LINES = 4
MAX_REPEATED_SHARE = 0.5


def seeded_order(seed: int, key: str) -> float:
    """A number in [0, 1) fixed by (seed, key): the same on every machine, whatever else is in the list."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_held_out(files: Iterable[SourceFile], seed: int) -> tuple[list[SourceFile], list[SourceFile]]:
    """(training, held out): whole files, each chosen by its own path and the seed alone."""
    training: list[SourceFile] = []
    held_out: list[SourceFile] = []
    low, high = HELD_OUT_BYTES
    for file in files:
        chosen = low <= len(file.text.encode()) <= high and seeded_order(seed, file.path) < HELD_OUT_SHARE
        (held_out if chosen else training).append(file)
    return training, held_out


def line_windows(text: str) -> list[int]:
    """Hashes of every run of `WINDOW_LINES` lines, blank and trivial lines left out, indentation ignored."""
    lines = [line.strip() for line in text.splitlines() if _counts(line)]
    return [hash(tuple(lines[i : i + WINDOW_LINES])) for i in range(len(lines) - WINDOW_LINES + 1)]


def _counts(line: str) -> bool:
    return len(line.strip()) > 3


def without_copies_of(files: Iterable[SourceFile], held_out: Iterable[SourceFile]) -> list[SourceFile]:
    """`files` less every line that stands in a line window of held-out text; mostly copied files are dropped."""
    forbidden = {w for file in held_out for w in line_windows(file.text)}
    cleaned = (_without_windows(file, forbidden) for file in files)
    return [file for file in cleaned if file is not None]


def _without_windows(file: SourceFile, forbidden: set[int]) -> SourceFile | None:
    shared = [i for i, window in enumerate(line_windows(file.text)) if window in forbidden]
    if not shared:
        return file
    lines = file.text.splitlines(keepends=True)
    counted = [i for i, line in enumerate(lines) if _counts(line)]
    dropped = {counted[i + k] for i in shared for k in range(WINDOW_LINES)}
    if len(dropped) >= MAX_REPEATED_SHARE * len(counted):
        return None
    return replace(file, text="".join(line for i, line in enumerate(lines) if i not in dropped))


def without_repeats(files: Iterable[SourceFile]) -> list[SourceFile]:
    """`files` in order, less those of which `MAX_REPEATED_SHARE` or more was in the files kept before."""
    seen: set[int] = set()
    kept: list[SourceFile] = []
    for file in files:
        windows = line_windows(file.text)
        if windows and sum(w in seen for w in windows) < MAX_REPEATED_SHARE * len(windows):
            seen.update(windows)
            kept.append(file)
    return kept
