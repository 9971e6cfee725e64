"""Result lines: targets, files, and nothing in them that names this machine."""

import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from slipstream.bench import results, results_page
from slipstream.bench.results import Result
from slipstream.errors import ConfigError


def result(**changes: Any) -> Result:
    values = {
        "date": "2026-01-02", "commit": "abc1234", "machine": "a CPU, 2 cores, 8 GiB", "command": "scripts/x.py",
        "case": "case A", "value": 1.5, "unit": "x", "compared_with": "the other", "target": ">= 1.2",
    }  # fmt: skip
    return Result(**(values | changes))


@pytest.mark.parametrize(
    ("value", "target", "met"),
    [
        (1.2, ">= 1.2", True), (1.19, ">= 1.2", False), (3.6, "<= 3.6", True), (3.7, "<= 3.6", False), (5, ">=4", True),
        (1.0, None, None),
    ],
)  # fmt: skip
def test_targets(value: float, target: str | None, met: bool | None) -> None:
    assert results.meets(value, target) is met


def test_an_unreadable_target() -> None:
    with pytest.raises(ConfigError, match="about 3"):
        results.meets(1.0, "about 3")


def test_lines_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "results" / "group.jsonl"
    results.append(path, [result(details={"runs": [1.0, 2.0]})])
    results.append(path, [result(value=2.0, target=None, compared_with=None)])
    assert results.read(path) == [
        result(details={"runs": [1.0, 2.0]}),
        result(value=2.0, target=None, compared_with=None),
    ]


@pytest.mark.parametrize(
    "line", [b'{"date": "2026-01-02"}', b"not json", msgspec.json.encode(result())[:-1] + b',"x":1}']
)
def test_a_wrong_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "group.jsonl"
    path.write_bytes(msgspec.json.encode(result()) + b"\n" + line + b"\n")
    with pytest.raises(ConfigError, match=r"group\.jsonl, line 2"):
        results.read(path)


def test_the_machine_is_described_without_its_name() -> None:
    text = results.this_machine()
    assert "cores" in text and "GiB" in text
    assert platform.node() not in text


def test_a_command_shows_no_folders_of_this_machine() -> None:
    assert results.command_line("scripts/x.py", ["--model-path", "/home/me/models/tiny 1", "--runs", "3"]) == (
        "scripts/x.py --model-path 'tiny 1' --runs 3"
    )


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_of_a_checkout(tmp_path: Path) -> None:
    assert results.current_commit(tmp_path) == "unknown"

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "-m", "first")
    head = git("rev-parse", "HEAD")
    assert head.startswith(results.current_commit(tmp_path))
    (tmp_path / "file").write_text("two")
    assert results.current_commit(tmp_path).endswith("+")


def rows_of(page: str) -> list[list[str]]:
    """The cells of the page's table rows, headers left out."""
    lines = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| case |")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_page_shows_the_latest_first_and_keeps_the_others() -> None:
    group = [
        result(case="A", value=1.0, date="2026-01-01"),
        result(case="B", value=9.0, target=None),
        result(case="A", value=1.1, date="2026-01-02"),
        result(case="A", value=1.4, date="2026-01-03"),
        result(case="A", value=7.0, machine="another"),
    ]
    page = results_page.render({"speed": group, "empty": []})
    assert "## speed" in page and "## empty" not in page
    before, after = page.split("Earlier:")
    assert [row[:2] for row in rows_of(before)] == [["A", "1.4 x"], ["B", "9 x"], ["A", "7 x"]]
    assert [row[:2] for row in rows_of(after)] == [["A", "1.1 x"], ["A", "1 x"]]


def test_page_marks_targets() -> None:
    group = [result(case="A"), result(case="B", value=1.0), result(case="C", target=None), result(case="D | E")]
    page = results_page.render({"g": group})
    marks = {row[0]: row[3] for row in rows_of(page)}
    assert marks == {"A": "met", "B": "**missed**", "C": "", "D \\| E": "met"}


def test_every_asked_for_field_is_there() -> None:
    names = set(Result.__struct_fields__)
    assert names >= {"date", "commit", "machine", "command", "case", "value", "unit", "compared_with", "target"}
