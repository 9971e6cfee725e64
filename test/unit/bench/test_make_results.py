"""scripts/make_results.py on a folder of its own."""

from pathlib import Path

import pytest

from support.scripts import load_script

LINE = (
    '{"date":"2026-01-02","commit":"abc","machine":"m","command":"c --x","case":"A","value":%s,"unit":"ms",'
    '"compared_with":null,"target":"<= 3"}\n'
)


def test_page_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "one.jsonl").write_text(LINE % 2 + LINE % 4)
    assert load_script("make_results").main(tmp_path) == 0
    page = (tmp_path / "RESULTS.md").read_text()
    assert "## one" in page and "| A | 4 ms | <= 3 | **missed** |" in page and "| A | 2 ms | <= 3 | met |" in page
    assert "2 results in 1 groups" in capsys.readouterr().out


def test_a_bad_line_leaves_the_page_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "one.jsonl").write_text("{}\n")
    assert load_script("make_results").main(tmp_path) == 1
    assert not (tmp_path / "RESULTS.md").exists()
    assert "one.jsonl, line 1" in capsys.readouterr().err
