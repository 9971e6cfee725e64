"""scripts/profile_step.py on a trace that was kept."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from support.scripts import load_script


def write_trace(path: Path, num_steps: int) -> None:
    """Steps of 20 kernels of 10 us without gaps, 5 us between steps."""
    events: list[dict[str, Any]] = []
    for step in range(num_steps):
        for index in range(20):
            start_us = step * 205 + index * 10
            name = "first" if index == 0 else f"k{index % 3}"
            events.append({"ph": "X", "cat": "kernel", "name": name, "ts": start_us, "dur": 10})
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))


def test_a_kept_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.json.gz"
    write_trace(path, 30)
    script = load_script("profile_step")
    assert script.main(["--from-trace", str(path), "--steps", "10", "--first-kernel", "^first$"]) == 0
    shown = capsys.readouterr().out
    assert "10 steps of 205.0 us" in shown and "Between two steps 5.0 us" in shown and "| `first` | 1 | 10.0 |" in shown


def test_what_is_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("profile_step")
    assert script.main(["--from-trace", str(tmp_path / "none.json")]) == 1
    write_trace(tmp_path / "trace.json.gz", 30)
    assert script.main(["--from-trace", str(tmp_path / "trace.json.gz"), "--first-kernel", "embed"]) == 1
    assert "No such file" in (shown := capsys.readouterr().err) and "only 0 kernels" in shown
