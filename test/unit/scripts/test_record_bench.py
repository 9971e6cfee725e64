"""Figures of a benchmark become results, one for each that was measured."""

from typing import Any

import pytest

from support.scripts import load_script

ROW = {
    "engine": "slipstream 0.1", "model": "m", "batch_size": 16, "input_len": 128.0, "output_len": 65.0, "ttft_s": 0.5,
    "tpot_ms": 2.5, "decode_tok_s": None, "speculative": True, "acceptance_length": 1.5,
}  # fmt: skip
SPECULATIVE = {
    "engine": "slipstream 0.1", "model": "slipstream-embedded", "batch_size": 1, "workload": "source", "num_steps": 3,
    "topk": 1, "adaptive": False, "acceptance_length": 2.5, "decode_tok_s": 90.0, "ratio": 1.25, "plain_tok_s": 72.0,
    "dtype": "bfloat16", "num_requests": 100, "num_failed": 0, "accepted": [1, 2], "position_rates": [0.5],
    "ttft_s": 0.1, "tpot_ms": 4.0, "plain_ttft_s": 0.1, "plain_tpot_ms": 6.0, "turn_ratios": [1.2, 1.3],
}  # fmt: skip


def test_measured_figures_are_kept_with_their_units() -> None:
    found = load_script("record_bench").to_results("one-batch", [ROW], "slipstream bench one-batch")
    assert [(result.case, result.value, result.unit) for result in found] == [
        ("one-batch, m, 16 at once, 128 tokens in, 65 out: ttft_s", 0.5, "s"),
        ("one-batch, m, 16 at once, 128 tokens in, 65 out: tpot_ms", 2.5, "ms"),
    ]
    assert found[0].details == {"engine": "slipstream 0.1", "speculative": True, "acceptance_length": 1.5}


def targets(**changes: Any) -> dict[str, str | None]:
    found = load_script("record_bench").to_results("speculative", [SPECULATIVE | changes], "slipstream bench")
    return {result.case.rsplit(": ")[-1]: result.target for result in found}


def test_figures_of_speculation() -> None:
    found = load_script("record_bench").to_results("speculative", [SPECULATIVE], "slipstream bench")
    head = "speculative, slipstream-embedded, source, 1 at once, K 3: "
    assert [(result.case, result.value, result.unit) for result in found] == [
        (head + "acceptance_length", 2.5, "tokens/step"),
        (head + "decode_tok_s", 90.0, "tokens/s"),
        (head + "ratio", 1.25, "x"),
    ]
    assert found[2].compared_with == "no drafts, same requests in turns: 72.0 tok/s"


@pytest.mark.parametrize(
    ("changes", "length", "ratio"),
    [
        ({}, ">= 2.2", None),
        ({"workload": "questions"}, ">= 3.5", None),
        ({"workload": "questions", "adaptive": True}, None, ">= 1.5"),
        ({"adaptive": True}, None, ">= 1.0"),
        ({"adaptive": True, "batch_size": 16}, None, None),
        ({"num_steps": 5}, None, None),
        ({"topk": 4}, None, None),
        ({"model": "another"}, None, None),
        ({"workload": "questions of mine.txt"}, None, None),
    ],
)
def test_targets_of_speculation(changes: dict[str, Any], length: str | None, ratio: str | None) -> None:
    assert targets(**changes) == {"acceptance_length": length, "decode_tok_s": None, "ratio": ratio}
