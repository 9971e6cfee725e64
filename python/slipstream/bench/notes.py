"""Notes on missed targets: Markdown files written by hand that say where the time goes and what would close the gap.

The first line of a file names its cases, by how they begin: `Cases: 7b, bs 64; 24b, bs 64`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slipstream.bench.results import Result, meets
from slipstream.errors import ConfigError

_HEAD = "Cases:"


@dataclass(frozen=True)
class Note:
    """`cases` are beginnings of a Result's case."""

    cases: tuple[str, ...]
    text: str

    def is_about(self, result: Result) -> bool:
        return result.case.startswith(self.cases)


def read_notes(folder: Path) -> list[Note]:
    """The notes of a folder, by file name; none where there is no folder. Raises ConfigError."""
    notes = []
    for path in sorted(folder.glob("*.md")):
        head, _, text = path.read_text(encoding="utf-8").partition("\n")
        cases = tuple(case.strip() for case in head.removeprefix(_HEAD).split(";") if case.strip())
        if not head.startswith(_HEAD) or not cases:
            raise ConfigError(f"{path.name}: the first line must be like '{_HEAD} 7b, bs 64; 24b, bs 64'")
        notes.append(Note(cases, text.strip()))
    return notes


def notes_section(results: Sequence[Result], notes: Sequence[Note]) -> list[str]:
    """Paragraphs of Markdown: every note about a missed target, and which misses have none."""
    missed = [result for result in results if meets(result.value, result.target) is False]
    parts = []
    for note in notes:
        if about := [result.case for result in missed if note.is_about(result)]:
            parts.append(f"**Missed: {'; '.join(about)}**\n\n{note.text}\n")
    if bare := [result.case for result in missed if not any(note.is_about(result) for note in notes)]:
        parts.append(f"Missed, and not explained yet: {'; '.join(bare)}.\n")
    return parts
