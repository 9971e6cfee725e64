"""What a start says of its drafts."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from slipstream.config.options import LaunchOptions
from slipstream.hf_transformers.embedded import embedded_path
from slipstream.launch.prepare import Prepared, prepare
from slipstream.launch.report import draft_in_one_line
from slipstream.launch.verdict import verdict, verdict_warnings
from slipstream.launch.warm_up import WarmUp
from slipstream.messages.sampling import DraftStats
from support.draft_checkpoints import draft_shapes, write_draft

GOOD = WarmUp(DraftStats(57, (2, 1, 3, 13)))  # 19 steps with 1 + 6 + 39 accepted: 65 / 19 tokens each
BAD = WarmUp(DraftStats(120, (38, 2, 0, 0)))  # 42 tokens in 40 steps


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    params = json.loads((embedded_path() / "params.json").read_text())
    return write_draft(tmp_path_factory.mktemp("pair") / "draft", params, num_layers=1)


def prepared(draft: Path, **options: Any) -> Prepared:
    return prepare(LaunchOptions(speculative_draft_model_path=str(draft), **options))


def test_a_good_pair_is_one_line(draft: Path) -> None:
    pair = prepared(draft)
    assert verdict(pair, GOOD) == "speculation: EAGLE (mistral_eagle), K = 3, warm-up acceptance length 3.42"
    assert verdict_warnings(pair, GOOD) == []


def test_a_pair_that_does_not_belong_together_is_a_warning_that_helps(draft: Path) -> None:
    pair = prepared(draft)
    assert "1.05" in verdict(pair, BAD)
    text = " ".join(verdict_warnings(pair, BAD))
    for word in (str(draft), pair.spec.path, "trained enough", "--speculative-algorithm none", "1.1"):
        assert word in text
    assert "--dtype" in text and "the draft is stored in float32" in text  # the target in bfloat16
    enough = WarmUp(DraftStats(30, (9, 1)))  # 11 tokens in 10 steps
    assert verdict_warnings(pair, enough) == []


def test_dtypes_that_are_all_the_same_are_no_suspects() -> None:
    for dtype in ("bfloat16", "float32"):  # the pair that ships is stored in bfloat16
        text = " ".join(verdict_warnings(prepare(LaunchOptions(dtype=dtype)), BAD))
        assert "trained enough" in text and "dtype" not in text
    mixed = prepare(LaunchOptions(dtype="bfloat16", speculative_draft_dtype="float32"))
    assert "runs in float32 (--speculative-draft-dtype)" in " ".join(verdict_warnings(mixed, BAD))


def test_a_tree_shows_its_sizes(draft: Path) -> None:
    line = verdict(prepared(draft, speculative_eagle_topk=4), GOOD)
    assert "K = 5 in trees of 7 drafts (topk 4)" in line


def test_simulated_acceptance_is_said_to_be_simulated(draft: Path) -> None:
    pair = prepared(draft, simulate_acceptance_length=1.05)
    assert verdict(pair, BAD).endswith("warm-up acceptance length 1.05, simulated")
    (warning,) = verdict_warnings(pair, BAD)
    assert "answers are wrong" in warning and "check" not in warning


@pytest.mark.parametrize("flag", ["load_format", "speculative_draft_load_format"])
def test_with_random_weights_acceptance_means_nothing(draft: Path, flag: str) -> None:
    pair = prepared(draft, **{flag: "dummy"})
    assert "which means nothing with random weights" in verdict(pair, BAD)
    assert verdict_warnings(pair, BAD) == []


def test_ngram_finds_little_to_look_up_and_is_not_to_blame() -> None:
    pair = prepare(LaunchOptions(speculative_algorithm="NGRAM"))
    assert verdict(pair, BAD) == "speculation: NGRAM, K = 5, warm-up acceptance length 1.05"
    assert verdict(pair, WarmUp(None)) == "speculation: NGRAM, K = 5, nothing drafted in the warm-up"
    assert verdict_warnings(pair, BAD) == verdict_warnings(pair, WarmUp(None)) == []


def test_what_went_wrong_is_said(draft: Path) -> None:
    pair = prepared(draft)
    assert verdict(pair, WarmUp(None, "no room")).endswith("K = 3, not measured: no room")
    assert verdict(pair, WarmUp(GOOD.stats, "still counted")).endswith("3.42 (still counted)")
    assert verdict_warnings(pair, WarmUp(None, "no room")) == []


def test_the_draft_is_introduced(draft: Path) -> None:
    pair = prepared(draft)
    assert pair.draft is not None
    params = json.loads((draft / "params.json").read_text())
    millions = sum(math.prod(size) for _, size in draft_shapes(params)) / 1e6
    assert draft_in_one_line(pair.draft) == f"mistral_eagle, dense GQA; 1 layer; {millions:.1f} M parameters; float32"
