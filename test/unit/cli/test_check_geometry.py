"""`slipstream check` on the geometry of published models, whose sizes are known."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from slipstream.cli.check import main
from slipstream.errors import ConfigError
from support.scripts import load_script

GIB = 2**30


def write(preset: str, folder: Path) -> str:
    geometry = load_script("make_geometry")
    params = geometry.PRESETS[preset]
    geometry.write(folder, params, list(geometry.tensors_of(params, geometry.is_draft(preset))))
    return str(folder)


def check(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, Any]:
    code = main([*args, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_medium_and_its_draft_in_folders_that_mislead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = write("medium-3.5", tmp_path / "eagle-tests" / "mistral-large-3-draft")
    draft = write("medium-3.5-eagle", tmp_path / "draft")
    code, report = check(capsys, "--model-path", target, "--speculative-draft-model-path", draft)
    assert code == 0
    medium, eagle = report["target"], report["draft"]
    assert (medium["role"], eagle["role"]) == ("target", "draft")
    assert medium["layout"] == eagle["layout"] == "mistral"
    assert medium["architecture"] == "Ministral3ForCausalLM" and eagle["architecture"] == "MistralForCausalLMEagle"
    assert round(medium["parameters"] / 1e9, 1) == 125.0
    assert round(eagle["parameters"] / 1e9, 2) == 3.07
    assert medium["kv_bytes_per_token"] == 360448
    assert round(medium["config"]["attention_factor"], 5) == round(eagle["config"]["attention_factor"], 5) == 1.41589
    assert eagle["shares"] == ["embedding", "head"]
    assert any("final norm" in need and "12288" in need for need in eagle["needs"])
    assert medium["problems"] == eagle["problems"] == []
    assert any("tokenizer" in warning for warning in medium["warnings"])
    storage = {group["name"]: group["storage"] for group in medium["groups"]}
    assert (storage["layers.*.qkv"], storage["head"], storage["norm"]) == ("FP8 (e4m3)", "BF16", "BF16")
    assert medium["quantization"] == "FP8 (e4m3), one scale per matrix or row, static activation scales"


def test_the_fit_table_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, draft = write("medium-3.5", tmp_path / "t"), write("medium-3.5-eagle", tmp_path / "d")
    more = ["--gpu-memory-gib", "141", "--tp", "4"]
    _, report = check(capsys, "--model-path", target, "--speculative-draft-model-path", draft, *more)
    (row,) = report["fit"]
    norm_bytes = (88 * 2 + 1 + 2 * 2 + 1) * 12288 * 2  # the only tensors that every rank holds
    weights = sum(report[role]["weight_bytes"] for role in ("target", "draft"))
    on_each = (weights - norm_bytes) / 4 + norm_bytes
    assert row["weight_gib"] * GIB == pytest.approx(on_each, abs=1e6)  # scales are a few kB
    per_token = (88 + 2) * 2 * (8 // 4) * 128 * 2
    assert row["kv_bytes_per_token"] == per_token
    assert row["kv_tokens"] == pytest.approx((141 * GIB * 0.92 - on_each) / per_token, rel=1e-4)
    assert row["fits"] and row["full_contexts"] == pytest.approx(row["kv_tokens"] / 262144)


@pytest.mark.parametrize(
    ("preset", "billions", "kv_bytes"),
    [
        ("7b", 7.25, 32 * 2 * 8 * 128 * 2),
        ("24b", 23.57, 40 * 2 * 8 * 128 * 2),
        ("ministral-3-3b", 3.43, 26 * 2 * 8 * 128 * 2),
        ("ministral-3-8b", 8.49, 34 * 2 * 8 * 128 * 2),
        ("mixtral-8x7b", 46.7, 32 * 2 * 8 * 128 * 2),
        ("small-4", 118.97, 11520 * 2),
        ("small-4-vision", 119.40, 11520 * 2),
        ("large-3", 673.4, 35136 * 2),
    ],
)
def test_published_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], preset: str, billions: float, kv_bytes: int
) -> None:
    code, report = check(capsys, "--model-path", write(preset, tmp_path))
    assert (code, report["target"]["problems"]) == (0, [])
    assert report["target"]["parameters"] / 1e9 == pytest.approx(billions, abs=0.05)
    assert report["target"]["kv_bytes_per_token"] == kv_bytes


def test_a_vision_model_has_exactly_its_published_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, draft = write("medium-3.5-vision", tmp_path / "t"), write("medium-3.5-eagle", tmp_path / "d")
    code, report = check(capsys, "--model-path", target, "--speculative-draft-model-path", draft)
    assert (code, report["target"]["problems"], report["draft"]["problems"]) == (0, [], [])
    assert report["target"]["parameters"] == 127_704_210_176
    assert report["target"]["architecture"] == "Mistral3ForConditionalGeneration"
    assert report["target"]["kv_bytes_per_token"] == 360448
    assert round(report["target"]["config"]["text_config"]["attention_factor"], 5) == 1.41589


@pytest.mark.parametrize(
    ("target", "draft", "draft_bytes"),
    [("small-4", "small-4-eagle", 391_643_136), ("large-3", "large-3-eagle", 11.652e9)],
)
def test_latent_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, draft: str, draft_bytes: float
) -> None:
    paths = write(target, tmp_path / "t"), write(draft, tmp_path / "d")
    code, report = check(capsys, "--model-path", paths[0], "--speculative-draft-model-path", paths[1])
    assert (code, report["draft"]["problems"]) == (0, [])
    assert report["draft"]["architecture"] == "MistralLarge3ForCausalLMEagle"
    assert report["draft"]["parameters"] == pytest.approx(draft_bytes, rel=0.005)


def test_a_draft_of_another_model_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, draft = write("24b", tmp_path / "t"), write("medium-3.5-eagle", tmp_path / "d")
    code, report = check(capsys, "--model-path", target, "--speculative-draft-model-path", draft)
    assert code == 1 and report["target"]["problems"] == []
    (problem,) = report["draft"]["problems"]
    assert "12288" in problem and "5120" in problem


def test_roles_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, draft = write("7b", tmp_path / "draft-eagle"), write("medium-3.5-eagle", tmp_path / "target")
    code, report = check(capsys, "--model-path", draft)
    assert code == 1 and "--speculative-draft-model-path" in report["target"]["problems"][0]
    code, report = check(capsys, "--model-path", target, "--speculative-draft-model-path", target)
    assert code == 1 and report["draft"]["problems"]


def test_missing_tensors_of_a_draft_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    geometry = load_script("make_geometry")
    params = geometry.PRESETS["medium-3.5-eagle"]
    kept = [tensor for tensor in geometry.tensors_of(params, True) if "layers.1.feed_forward.w2" not in tensor[0]]
    geometry.write(tmp_path / "d", params, kept)
    target = write("medium-3.5", tmp_path / "t")
    _, report = check(capsys, "--model-path", target, "--speculative-draft-model-path", str(tmp_path / "d"))
    assert any("layers.1.feed_forward.w2.weight" in problem for problem in report["draft"]["problems"])


def test_it_takes_less_than_two_seconds(tmp_path: Path) -> None:
    target, draft = write("medium-3.5", tmp_path / "t"), write("medium-3.5-eagle", tmp_path / "d")
    command = [sys.executable, "-m", "slipstream", "check", "--json", "--model-path", target]
    best_s = 1e9
    for _ in range(3):  # the machine may be busy
        started = time.perf_counter()
        subprocess.run([*command, "--speculative-draft-model-path", draft], check=True, capture_output=True)
        best_s = min(best_s, time.perf_counter() - started)
    assert best_s < 2


def test_a_configuration_alone_is_sized_as_its_checkpoint_would_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(write("ministral-3-3b", tmp_path))
    _, real = check(capsys, "--model-path", str(folder))
    (folder / "consolidated.safetensors").unlink()
    code, assumed = check(capsys, "--model-path", str(folder), "--load-format", "dummy")
    assert (code, assumed["target"]["problems"]) == (0, [])
    assert assumed["target"]["parameters"] == real["target"]["parameters"]
    scale_bytes = 26 * 7 * 2 * 4  # two fp32 numbers for each matrix
    assert assumed["target"]["weight_bytes"] == real["target"]["weight_bytes"] - scale_bytes


def test_a_degree_that_cannot_divide_is_a_problem_of_whoever_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, draft = write("medium-3.5", tmp_path / "t"), write("medium-3.5-eagle", tmp_path / "d")
    code, report = check(capsys, "--model-path", target, "--speculative-draft-model-path", draft, "--tp", "16")
    assert (code, report["fit"]) == (1, [])
    assert any("16 ranks" in problem for problem in report["target"]["problems"])
    assert any("16 ranks" in problem for problem in report["draft"]["problems"])


def test_damaged_weights_have_no_fit_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write("7b", tmp_path)
    (tmp_path / "consolidated-00001-of-00002.safetensors").write_bytes(b"abcd")
    code, report = check(capsys, "--model-path", folder)
    assert (code, report["fit"]) == (1, [])
    assert report["target"]["architecture"] == "MistralForCausalLM"


def test_random_weights_for_both_of_a_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, draft = write("medium-3.5", tmp_path / "t"), write("medium-3.5-eagle", tmp_path / "d")
    (tmp_path / "d" / "consolidated.safetensors").unlink()
    more = ["--load-format", "dummy", "--config-format", "mistral"]
    code, report = check(capsys, "--model-path", target, "--speculative-draft-model-path", draft, *more)
    assert (code, report["draft"]["files"], report["target"]["files"]) == (0, [], [])
    assert round(report["draft"]["parameters"] / 1e9, 2) == 3.07


def test_problems_stand_where_they_belong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draft = write("medium-3.5-eagle", tmp_path / "d")
    args = ["--model-path", str(tmp_path / "nothing"), "--speculative-draft-model-path", draft, "--tp", "7"]
    code, report = check(capsys, *args)
    assert code == 1
    assert any("7 ranks" in problem for problem in report["draft"]["problems"])
    assert not any("7 ranks" in problem for problem in report["target"]["problems"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--context-length", "0"], "--context-length is 0"),
        (["--context-length", "99999999"], "made for at most 262144"),
        (["--mem-fraction-static", "7"], "--mem-fraction-static is 7"),
        (["--mem-fraction-static", "nan"], "--mem-fraction-static is nan"),
    ],
)
def test_limits_are_those_of_the_server(tmp_path: Path, flags: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        main(["--model-path", write("medium-3.5", tmp_path), *flags])


def test_a_revision_is_a_repository_s() -> None:
    with pytest.raises(ConfigError, match="--revision"):
        main(["--revision", "main"])
