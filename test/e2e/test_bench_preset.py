"""A preset of tiny size goes through `slipstream bench one-batch`, with the processes of a server."""

import json
from pathlib import Path
from typing import Any

import pytest

from slipstream.bench import presets
from slipstream.bench.presets import Preset
from slipstream.cli.bench import main

TINY: dict[str, Any] = {
    "dim": 64, "n_layers": 2, "head_dim": 16, "hidden_dim": 96, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5,
    "rope_theta": 1e6, "vocab_size": 1000, "max_position_embeddings": 256,
}  # fmt: skip
FLAGS = ["--preset", "tiny", "--input-len", "16", "--output-len", "9", "--runs", "1", "--memory-bandwidth-gbs", "40"]
BODY = 2 * (64 * 16 * 12 + 3 * 64 * 96)  # weights of both layers
HEAD = 1000 * 64
KV_TOKEN = 2 * 2 * 2 * 16  # values of one token: layers, keys and values, heads, head size


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(presets.PRESETS, "tiny", Preset(TINY, 1))  # type: ignore[arg-type]
    return tmp_path / "rows.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_without_a_draft(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["one-batch", *FLAGS, "--dtype", "float32", "--batch-size", "1", "3", "--output-json", str(rows)]
    assert main(arguments) == 0
    first, second = read(rows)
    assert (first["batch_size"], second["batch_size"]) == (1, 3)
    assert first["model"] == first["preset"] == "tiny" and first["num_drafts"] == 0
    for row in (first, second):
        num_bytes = 4 * (BODY + HEAD + row["batch_size"] * (16 + 4.5) * KV_TOKEN)
        assert row["step_bytes"] == num_bytes and row["floor_ms"] == pytest.approx(num_bytes / 40e6)
        assert row["floor_percent"] == pytest.approx(100 * row["floor_ms"] / row["tpot_ms"])
    assert 0 < first["start_s"] == second["start_s"]
    shown = capsys.readouterr()
    assert "% of" in shown.out and "bs 3, in 16, out 9:" in shown.err and "ready in" in shown.err


def test_with_a_draft_whose_acceptance_is_pretended(rows: Path) -> None:
    drafts = ["--draft", "--speculative-num-steps", "3", "--simulate-acceptance-length", "3.0", "--batch-size", "2"]
    assert main(["one-batch", *FLAGS, *drafts, "--dtype", "float32", "--output-json", str(rows)]) == 0
    [row] = read(rows)
    assert (row["num_drafts"], row["simulated_length"], row["speculative"]) == (3, 3.0, True)
    assert 1 < row["acceptance_length"] <= 4
    draft_pass = BODY // 2 + 2 * 64 * 64 + HEAD + 2 * (16 + 4.5) * KV_TOKEN / 2
    num_bytes = 4 * (BODY + HEAD + 2 * (16 + 4.5) * KV_TOKEN + 3 * draft_pass)
    assert row["step_bytes"] == num_bytes and row["floor_ms"] == pytest.approx(num_bytes / 40e6 / 3.0)


def test_one_token_is_a_prefill_alone(rows: Path) -> None:
    flags = [*FLAGS, "--output-len", "1", "--batch-size", "2", "--dtype", "float32", "--in-process"]
    assert main(["one-batch", *flags, "--output-json", str(rows)]) == 0
    [row] = read(rows)
    assert row["tpot_ms"] is None and row["floor_ms"] is None and row["all_tokens_runs_s"] == []
    assert row["prefill_tok_s"] == pytest.approx(32 / row["ttft_s"])
    assert row["prefill_floor_ms"] == pytest.approx(4 * (BODY + HEAD) / 40e6)
