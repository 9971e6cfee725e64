"""Notes about missed targets: found by their cases, and a miss without one is not hidden."""

from pathlib import Path

import pytest

from slipstream.bench.floor_table import floor_table
from slipstream.bench.notes import Note, notes_section, read_notes
from slipstream.bench.results import Result
from slipstream.errors import ConfigError


def result(case: str, value: float, target: str | None = "<= 3", **details: object) -> Result:
    return Result(
        date="2026-01-02", commit="abc", machine="m", command="c", case=case, value=value, unit="ms", target=target,
        details=dict(details),
    )  # fmt: skip


def test_notes_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("Cases: 7b, bs 64; 24b\n\nText.\n\n| k | us |\n")
    assert read_notes(tmp_path) == [Note(("7b, bs 64", "24b"), "Text.\n\n| k | us |")]
    assert read_notes(tmp_path / "none") == []
    (tmp_path / "b.md").write_text("# A title\n")
    with pytest.raises(ConfigError, match=r"b\.md: the first line"):
        read_notes(tmp_path)


def test_only_misses_are_explained() -> None:
    notes = [Note(("7b, bs 64",), "Norms."), Note(("7b, bs 1,",), "Nothing.")]
    results = [
        result("7b, bs 1, in 128", 2), result("7b, bs 64, in 512", 4), result("7b, bs 256", 5), result("x", 9, None),
    ]  # fmt: skip
    parts = notes_section(results, notes)
    assert parts[0] == "**Missed: 7b, bs 64, in 512**\n\nNorms.\n"
    assert parts[1:] == ["Missed, and not explained yet: 7b, bs 256.\n"]


def test_ahead_of_the_faster_peer() -> None:
    def ahead(result: Result) -> str:
        return floor_table([result]).splitlines()[-1].split(" | ")[5]

    assert ahead(result("a", 4.0, peers={"P": 5.0, "Q": 6.0})) == "1.25x"
    assert ahead(result("a", 5.0, peers={"P": 4.0})) == "**0.80x**"
    rate = Result(
        date="d", commit="c", machine="m", command="c", case="a", value=50.0, unit="tokens/s",
        details={"peers": {"P": 40.0}},
    )  # fmt: skip
    assert ahead(rate) == "1.25x"
    assert ahead(result("a", 5.0)) == ""
