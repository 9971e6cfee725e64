"""Rows of a run elsewhere become results beside their targets."""

import json
from pathlib import Path
from typing import Any

import pytest

from slipstream.bench import results
from support.scripts import load_script

ROW: dict[str, Any] = {
    "engine": "slipstream 0.1", "model": "7b", "preset": "7b", "batch_size": 64, "input_len": 512, "output_len": 257,
    "ttft_s": 0.8, "ttft_median_s": 0.9, "tpot_ms": 5.0, "tpot_median_ms": 5.1, "decode_tok_s": 12800.0,
    "prefill_tok_s": 40960.0, "acceptance_length": None, "simulated_length": None, "num_drafts": 0, "num_gpus": 1,
    "date": "2026-01-02", "command": "slipstream bench one-batch --preset 7b", "device": "cuda",
    "device_name": "NVIDIA H200", "start_s": 12.5, "floor_ms": 4.5, "floor_percent": 90.0, "prefill_floor_ms": 600.0,
    "prefill_floor_percent": 75.0, "step_bytes": 2e10, "step_flops": 1e12, "prefill_bytes": 1.4e10,
    "prefill_flops": 5e14, "one_token_runs_s": [0.8, 0.9], "all_tokens_runs_s": [2.08, 2.2],
}  # fmt: skip


def of(**changes: Any) -> results.Result:
    [found] = load_script("record_h200").to_results([ROW | changes], "abc")
    assert isinstance(found, results.Result)
    return found


def test_a_decode_row() -> None:
    found = of()
    assert found.case == "7b, bs 64, in 512, out 257: time per token"
    assert (found.value, found.unit, found.target) == (5.0, "ms", "<= 5.6")
    assert found.compared_with == "vLLM 0.24.0: 6.55 ms, SGLang 0.5.15: 6.57 ms"
    assert (found.machine, found.date, found.commit) == ("NVIDIA H200", "2026-01-02", "abc")
    assert found.details["floor"] == 4.5 and found.details["floor_percent"] == 90.0
    assert found.details["work"] == {"bytes": 2e10, "flops": 1e12, "seconds": 0.005}
    assert list(found.details["peers"]) == ["vLLM 0.24.0", "SGLang 0.5.15"]


def test_a_step_with_drafts_takes_as_long_as_its_tokens_together() -> None:
    found = of(simulated_length=3.0, num_drafts=3, acceptance_length=2.96, tpot_ms=2.5)
    assert found.case == "7b + EAGLE, acceptance length 3, bs 64, in 512, out 257: time per token"
    assert found.target == "<= 2.9" and found.details["work"]["seconds"] == pytest.approx(0.0075)


def test_prefill_is_tokens_per_second_and_a_short_prompt_milliseconds() -> None:
    found = of(batch_size=8, input_len=8192, output_len=1, tpot_ms=None)
    assert (found.value, found.unit, found.target) == (40960.0, "tokens/s", ">= 39500")
    assert found.details["floor"] == pytest.approx(8 * 8192 / 0.6)  # a ceiling
    assert found.details["stretch"] == ">= 41000"
    found = of(batch_size=1, input_len=128, output_len=1, tpot_ms=None, ttft_s=0.0065)
    assert (found.value, found.unit, found.target) == (6.5, "ms", "<= 7") and found.details["floor"] == 600.0


def test_rows_without_a_target_are_kept_too() -> None:
    found = of(batch_size=2, preset=None, model="mine", floor_ms=None, step_bytes=None)
    assert found.case == "mine, bs 2, in 512, out 257: time per token"
    assert found.target is None and found.compared_with is None and found.details["work"] is None


def test_the_start_counts_once_for_each_engine() -> None:
    other = ROW | {"command": "slipstream bench one-batch --preset 24b", "preset": "24b", "start_s": 30.0}
    rows = [ROW, ROW | {"batch_size": 8}, other]
    found = load_script("record_h200").to_results(rows, "abc", "warm")
    starts = [result for result in found if result.unit == "s"]
    assert [(result.value, result.target) for result in starts] == [(12.5, "<= 15"), (30.0, None)]
    assert starts[0].case == "7b, random weights: start to ready, warm compile cache"
    assert starts[0].compared_with == "vLLM 0.24.0: 36 s, SGLang 0.5.15: 65 s"
    [cold] = [result for result in load_script("record_h200").to_results([ROW], "a", "cold") if result.unit == "s"]
    assert cold.target is None and "cold" in cold.case


def test_a_file_of_rows_becomes_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, output = tmp_path / "rows.jsonl", tmp_path / "results.jsonl"
    rows.write_text(json.dumps(ROW) + "\n")
    script = load_script("record_h200")
    assert script.main([str(rows), "--commit", "abc", "--output", str(output)]) == 0
    assert [result.value for result in results.read(output)] == [5.0]
    assert "time per token: 5 ms" in capsys.readouterr().out
    rows.write_text("{\n")
    assert script.main([str(rows), "--output", str(output)]) == 1
    assert "rows.jsonl, line 1" in capsys.readouterr().err
