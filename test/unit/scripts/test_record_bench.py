"""Figures of a benchmark become results, one for each that was measured."""

from support.scripts import load_script

ROW = {
    "engine": "slipstream 0.1", "model": "m", "batch_size": 16, "input_len": 128.0, "output_len": 65.0, "ttft_s": 0.5,
    "tpot_ms": 2.5, "decode_tok_s": None,
}  # fmt: skip


def test_measured_figures_are_kept_with_their_units() -> None:
    found = load_script("record_bench").to_results("one-batch", [ROW], "slipstream bench one-batch")
    assert [(result.case, result.value, result.unit) for result in found] == [
        ("one-batch, m, 16 at once, 128 tokens in, 65 out: ttft_s", 0.5, "s"),
        ("one-batch, m, 16 at once, 128 tokens in, 65 out: tpot_ms", 2.5, "ms"),
    ]
