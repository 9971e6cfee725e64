"""Where cases stand in the roofline plot, and that a picture comes out."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from slipstream.bench import results
from support.scripts import load_script


def result(case: str, flops: float, num_drafts: int = 0, machine: str = "NVIDIA H200") -> results.Result:
    details: dict[str, Any] = {"num_drafts": num_drafts, "work": {"bytes": 2e10, "flops": flops, "seconds": 0.01}}
    return results.Result(
        date="2026-01-02", commit="abc", machine=machine, command="c", case=case, value=1.0, unit="ms", details=details
    )


FOUND = [
    result("7b, bs 1: time per token", 9e9),
    result("7b, bs 1: time per token", 2e10),
    result("7b + EAGLE, acceptance length 3, bs 1: time per token", 8e10, 3),
    result("7b, prefill 8 x 8192: tokens per second", 5e12),
    result("7b, bs 1, elsewhere: time per token", 2e10, machine="another"),
]


def test_points_are_the_latest_of_each_case() -> None:
    points = load_script("plot_roofline").points_of(FOUND)
    assert [(point.flops_per_byte, point.tflops, point.kind, point.label) for point in points] == [
        (1.0, 2.0, "decode", "7b, bs 1"),
        (4.0, 8.0, "decode with a draft", "7b + EAGLE, length 3, bs 1"),
        (250.0, 500.0, "prefill", "7b, prefill 8 x 8192"),
    ]


def test_a_picture_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "results.jsonl", tmp_path / "images" / "roofline.png"
    script = load_script("plot_roofline")
    assert script.main(source, target) == 0 and not target.exists()
    assert "nothing to draw" in capsys.readouterr().out
    results.append(source, FOUND)
    assert script.main(source, target) == 0
    with Image.open(target) as picture:
        assert min(picture.size) > 400
