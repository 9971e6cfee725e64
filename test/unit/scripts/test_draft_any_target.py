"""A draft for a target that is not the embedded model, from the command line to a pair that can be served."""

import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from slipstream.errors import ConfigError
from slipstream.hf_transformers.embedded import embedded_path
from slipstream.hf_transformers.inspect import inspect_checkpoint, inspect_draft
from slipstream.launch.pair import pair_problems
from support.checkpoints import PARAMS, reference_model, write_native
from support.drafts import random_rows, run_in_steps
from support.scripts import SCRIPTS, load_script

sys.path.insert(0, str(SCRIPTS))

from embedded_training.draft_model import load_draft
from embedded_training.draft_text import read_text

STRETCHED = {
    "yarn": {"factor": 4, "original_max_position_embeddings": 64, "beta": 4, "alpha": 1, "apply_scale": True},
    "llama_4_scaling": {"original_max_position_embeddings": 64, "beta": 0.3},
    "vocab_size": 3072,  # the embedded model's tokenizer
}
OPTIONS = "--device cpu --n-layers 1 --hidden-dim 40 --seconds 4 --write-seconds 1 --batch-tokens 128 --written-rows 32"
LENGTHS = "--source-length 64 --long-length 128 --chat-length 64 --at-once 16 --measured 4"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, dense, with YaRN, query scale and a head of its own, in bf16 as files have them."""
    model = reference_model(**STRETCHED).to(torch.bfloat16)
    folder = write_native(tmp_path_factory.mktemp("any") / "target", model, **STRETCHED)
    shutil.copyfile(embedded_path() / "tekken.json", folder / "tekken.json")
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for name in ("bpe", "corpus", "questions", "sources"):
        shutil.copyfile(SCRIPTS / "embedded_training" / f"{name}.py", folder / f"{name}.py")
    chats = [
        {"messages": [{"role": "user", "content": f"What is {name}?"}, {"role": "assistant", "content": "left out"}]}
        for name in ("a list", "a tuple", "a set", "a dict", "zip") * 8
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    (folder / "picture.bin").write_bytes(b"\xff\xfe\x00")
    (folder / ".hidden").write_text("not read")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["train_embedded.py", *map(str, arguments)])
    load_script("train_embedded").main()


def test_from_text_to_a_pair(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target: Path, text: Path, tmp_path: Path
) -> None:
    """Its loss falls, the checks of a pair accept it, the serving model computes what the trainer does, and it can be
    measured.
    """
    out = tmp_path / "draft"
    run(monkeypatch, "--draft", "--target", target, "--text", text, "--out", out, *OPTIONS.split(), *LENGTHS.split())
    record = json.loads((out / "draft_training.json").read_text())
    first, last = record["log"][0], record["log"][-1]
    for part in ("text", "long", "chat"):
        assert sum(last[part]) < sum(first[part])
    assert last["accepted_text"] >= 1 and last["accepted_chat"] >= 1

    draft = inspect_draft(str(out))
    assert pair_problems(inspect_checkpoint(str(target)), draft) == []
    params = json.loads((out / "params.json").read_text())
    assert params == PARAMS | STRETCHED | {"n_layers": 1, "hidden_dim": 40}
    x, hidden = random_rows(150, PARAMS["dim"])
    with torch.no_grad():
        ours = load_draft(out, torch.float32)(x[None], hidden[None])[0]
    served = run_in_steps(out, x, hidden, [70, 140, 141, 142])
    assert float((ours - served).abs().max()) <= 1e-4

    assert f"serve it with --speculative-draft-model-path {out}" in capsys.readouterr().out.splitlines()[-1]

    run(monkeypatch, "evaluate-draft", "--target", target, "--text", text, "--checkpoint", out, "--limit", 3)
    measured = json.loads((out / "measurements.json").read_text())
    assert measured["target_sha256"] == record["target_sha256"]
    assert [measured[name]["prompts"] for name in ("text", "chat")] == [3, 3]


def test_text_is_read_as_the_target_reads_it(target: Path, text: Path) -> None:
    """Documents with <s> before each, conversations up to where the assistant speaks; nothing else."""
    spec = inspect_checkpoint(str(target))
    corpus = read_text([text], spec, 0)
    assert (corpus.stream == corpus.bos).sum() == 4
    assert corpus.bos == 1 and len(corpus.chats) == 40 and corpus.stops == spec.eos_token_ids
    assert all(chat[-1] == 4 for chat in corpus.chats)  # [/INST]: the assistant's own words are left out
    training, held_out = corpus.split(0.1)
    assert len(training.stream) + len(held_out.stream) == len(corpus.stream)
    assert (len(training.chats), len(held_out.chats)) == (36, 4)


def wrong_inputs(folder: Path) -> dict[str, Any]:
    (folder / "broken.jsonl").write_text('{"messages": []}\n')
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "empty").mkdir()
    return {
        "there is no such file": folder / "nowhere",
        "line 1: not": folder / "broken.jsonl",
        "is not UTF-8": folder / "latin.txt",
        "there is no text": folder / "empty",
    }


def test_wrong_text_is_refused_with_its_name(target: Path, tmp_path: Path) -> None:
    spec = inspect_checkpoint(str(target))
    for words, path in wrong_inputs(tmp_path).items():
        with pytest.raises(ConfigError, match=words):
            read_text([path], spec, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("stage", [["--draft", "--out"], ["evaluate-draft", "--device", "cuda", "--checkpoint"]])
def test_a_missing_gpu_ends_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, stage: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *stage, tmp_path / "draft", "--text", tmp_path)
    assert ended.value.code == 1
    assert "give --device cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    "stage", ["corpus", "train", "evaluate", "install", "draft", "evaluate-draft", "install-draft"]
)
def test_every_option_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        run(monkeypatch, stage, "--help")
    lines = [*capsys.readouterr().out.splitlines(), ""]
    options = [(line, below) for line, below in pairwise(lines) if line.startswith("  -")]
    assert len(options) > 3
    assert [line for line, below in options if "  " not in line.strip() and not below.startswith(" " * 20)] == []


def test_a_mistake_ends_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target: Path, tmp_path: Path
) -> None:
    """The embedded model's corpus is in the ids of its own tokenizer."""
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "--draft", "--target", target, "--corpus", tmp_path, "--out", tmp_path, "--device", "cpu")
    assert ended.value.code == 1
    assert "give --text in the place of --corpus" in capsys.readouterr().err
