"""`slipstream check` says what is in a folder, from headers alone."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from slipstream.cli.check import main
from slipstream.errors import ConfigError
from slipstream.hf_transformers.embedded import embedded_draft_path, embedded_path


def test_sizes_are_those_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    target = json.loads(capsys.readouterr().out)["target"]
    weights = embedded_path() / "consolidated.safetensors"
    with weights.open("rb") as file:
        header_bytes = 8 + struct.unpack("<Q", file.read(8))[0]
    assert target["weight_bytes"] == weights.stat().st_size - header_bytes
    params = json.loads((embedded_path() / "params.json").read_text())
    assert target["kv_bytes_per_token"] == params["n_layers"] * 2 * params["n_kv_heads"] * params["head_dim"] * 2
    assert (target["layout"], target["problems"]) == ("mistral", [])


def test_the_draft_that_ships_with_the_model_is_looked_at_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    draft = json.loads(capsys.readouterr().out)["draft"]
    assert (draft["path"], draft["role"], draft["problems"]) == (str(embedded_draft_path()), "draft", [])
    assert main(["--model-path", str(embedded_path()), "--json"]) == 0
    assert "draft" not in json.loads(capsys.readouterr().out)


def test_the_text_form_names_the_same_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "MistralForCausalLM" in out and "tekken.json" in out


def test_every_problem_is_printed_and_the_exit_code_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(embedded_path(), folder)
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps({**params, "n_layers": -1, "n_head": 3}))
    assert main(["--model-path", str(folder)]) == 1
    problems = capsys.readouterr().err
    assert "n_layers" in problems and "n_head" in problems
    assert main(["--model-path", str(folder), "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["target"]["problems"]) >= 2


def test_an_empty_path_is_not_the_model_that_ships_with_slipstream() -> None:
    with pytest.raises(ConfigError, match="--model-path is empty"):
        main(["--model-path", ""])


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_path_that_the_terminal_cannot_show(tmp_path: Path, encoding: str) -> None:
    folder = os.fsencode(tmp_path) + b"/\xff"
    shutil.copytree(os.fsencode(embedded_path()), folder)
    command = [sys.executable, "-m", "slipstream", "check", "--model-path", folder]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\udcff" in done.stdout


def test_a_tokenizer_of_another_model_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(embedded_path(), folder)
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps({**params, "vocab_size": 1000}))
    assert main(["--model-path", str(folder), "--load-format", "dummy", "--json"]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["target"]["problems"]
    assert "3072 tokens" in problem and "1000" in problem


def test_numbers_of_gpus_without_a_row_have_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {row["tp"] for row in report["fit"]} == {1, 2}  # two KV heads
    assert set(report["not_shared"]) == {"4", "8"}
