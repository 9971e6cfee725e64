"""scripts/make_results.py on a repository of its own."""

from pathlib import Path

import pytest

from support.scripts import SCRIPTS, load_script

LINE = (
    '{"date":"2026-01-02","commit":"abc","machine":"m","command":"c --x","case":"A","value":%s,"unit":"ms",'
    '"compared_with":null,"target":"<= 3"%s}\n'
)
PAGE = "Before.\n\n{/* figures: written by make results from bench/results/ */}\n{/* end of figures */}\nAfter.\n"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "bench" / "results"
    folder.mkdir(parents=True)
    return folder


def test_page_is_written(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "one.jsonl").write_text(LINE % (2, "") + LINE % (4, ""))
    assert load_script("make_results").main(tmp_path) == 0
    page = (tmp_path / "bench" / "RESULTS.md").read_text()
    assert "## one" in page and "| A | 4 ms | <= 3 | **missed** |" in page and "| A | 2 ms | <= 3 | met |" in page
    assert "2 results in 1 groups" in capsys.readouterr().out


def test_a_bad_line_leaves_the_pages_alone(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "one.jsonl").write_text("{}\n")
    (tmp_path / "docs_new").mkdir()
    (tmp_path / "docs_new" / "performance.mdx").write_text(PAGE)
    assert load_script("make_results").main(tmp_path) == 1
    assert not (tmp_path / "bench" / "RESULTS.md").exists()
    assert (tmp_path / "docs_new" / "performance.mdx").read_text() == PAGE
    assert "one.jsonl, line 1" in capsys.readouterr().err


def test_figures_and_notes_reach_both_pages(results: Path, tmp_path: Path) -> None:
    details = ',"details":{"floor":2.5,"floor_percent":62.5,"peers":{"P 1":5.0}}'
    (results / "one_batch_h200.jsonl").write_text(LINE % (4, details))
    (tmp_path / "bench" / "notes").mkdir()
    (tmp_path / "bench" / "notes" / "a.md").write_text("Cases: A\n\nThe time goes into norms.\n")
    docs = tmp_path / "docs_new"
    (docs / "images").mkdir(parents=True)
    (docs / "performance.mdx").write_text(PAGE)
    (docs / "images" / "roofline_h200.png").write_bytes(b"")
    assert load_script("make_results").main(tmp_path) == 0
    line = "| A | 4 ms | 2.5 | 62 | P 1: 5 | 1.25x | {} 3 | **missed** | 2026-01-02 | abc |"
    page = (tmp_path / "bench" / "RESULTS.md").read_text()
    assert line.format("<=") in page and "The time goes into norms." in page
    shown = (docs / "performance.mdx").read_text()
    assert line.format("≤") in shown and "The time goes into norms." in shown and "roofline_h200.png" in shown
    assert shown.startswith("Before.") and shown.endswith("After.\n")
    assert load_script("make_results").main(tmp_path) == 0
    assert (docs / "performance.mdx").read_text() == shown  # nothing is added by a second run


def test_the_page_in_the_repository_is_current(tmp_path: Path) -> None:
    script = load_script("make_results")
    page = SCRIPTS.parent / "docs_new" / "performance.mdx"
    path = SCRIPTS.parent / "bench" / "results" / f"{script.H200}.jsonl"
    figures = script.results.read(path) if path.is_file() else []
    found = script.notes.read_notes(SCRIPTS.parent / "bench" / "notes")
    assert page.read_text() == script.page_text(page, figures, found), "run make results"
