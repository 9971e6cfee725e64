"""Target and draft are looked at, held against each other and refused before anything is loaded."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from slipstream.config.options import LaunchOptions
from slipstream.errors import CheckpointError, ConfigError
from slipstream.hf_transformers.embedded import embedded_path
from slipstream.launch import look
from slipstream.launch.prepare import prepare
from support.draft_checkpoints import write_draft
from support.live_server import tiny_checkpoint

PARAMS: dict[str, Any] = json.loads((embedded_path() / "params.json").read_text())


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_draft(tmp_path_factory.mktemp("pair") / "draft", PARAMS, num_layers=1)


def test_a_draft_that_belongs_to_the_target(draft: Path) -> None:
    prepared = prepare(LaunchOptions(speculative_draft_model_path=str(draft)))
    assert prepared.draft is not None and prepared.draft.path == str(draft)
    worker, scheduler = prepared.resolved.worker.drafts, prepared.resolved.scheduler.drafts
    assert worker is not None and scheduler is not None
    assert (worker.algorithm, worker.model_path) == ("EAGLE", str(draft))
    assert (scheduler.successor_depth, scheduler.has_kv) == (1, True)
    assert prepared.warnings == prepared.spec.warnings


def test_every_mismatch_is_named_at_once(tmp_path: Path) -> None:
    folder = write_draft(tmp_path / "d", PARAMS | {"vocab_size": 100}, num_layers=1, head_dim=32)
    with pytest.raises(CheckpointError) as caught:
        prepare(LaunchOptions(speculative_draft_model_path=str(folder)))
    message = str(caught.value)
    assert str(folder) in message and "vocabulary size is 100" in message and "head size is 32" in message


def test_problems_of_target_and_draft_are_named_together(tmp_path: Path, draft: Path) -> None:
    target = tiny_checkpoint(tmp_path / "t", vocab_size=1000)  # without weights
    with pytest.raises(CheckpointError) as caught:
        prepare(LaunchOptions(model_path=str(target), speculative_draft_model_path=str(tmp_path / "nowhere")))
    message = str(caught.value)
    assert "no complete layout" in message and f"of the draft, {tmp_path / 'nowhere'}: there is no such" in message


def test_a_target_is_no_draft_and_a_draft_no_target(draft: Path) -> None:
    with pytest.raises(CheckpointError, match="this is a target, not a draft"):
        prepare(LaunchOptions(speculative_draft_model_path=str(embedded_path())))
    with pytest.raises(CheckpointError, match="this is a draft"):
        prepare(LaunchOptions(model_path=str(draft)))


def test_flags_that_cannot_go_together_are_refused_before_files_are_looked_at() -> None:
    with pytest.raises(ConfigError, match="--speculative-num-draft-tokens is 9"):
        prepare(
            LaunchOptions(
                model_path="/nowhere", speculative_draft_model_path="/nowhere/either",
                speculative_num_steps=3, speculative_num_draft_tokens=9,
            )
        )  # fmt: skip


def test_a_revision_of_a_folder_names_the_draft_s_flag(draft: Path) -> None:
    options = LaunchOptions(speculative_draft_model_path=str(draft), speculative_draft_model_revision="v2")
    with pytest.raises(CheckpointError, match="--speculative-draft-model-revision goes with the name of a repository"):
        prepare(options)


def test_a_short_draft_is_a_warning(tmp_path: Path) -> None:
    folder = write_draft(tmp_path / "d", PARAMS, num_layers=1, max_position_embeddings=128)
    (warning,) = prepare(LaunchOptions(speculative_draft_model_path=str(folder))).warnings
    assert warning.startswith("the draft: ") and "128 tokens" in warning


def test_the_draft_that_ships_is_used_with_the_model_that_ships(
    tmp_path: Path, draft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "embedded_draft_path", lambda: draft)
    prepared = prepare(LaunchOptions())
    assert prepared.draft is not None and prepared.resolved.worker.drafts is not None
    found = prepared.resolved.reasons["speculative_draft_model_path"]
    assert found == (str(draft), "the draft that ships with Slipstream")
    other = LaunchOptions(model_path=str(tiny_checkpoint(tmp_path / "t")), load_format="dummy")
    for options in (
        LaunchOptions(speculative_algorithm="none"), LaunchOptions(speculative_algorithm="ngram"), other
    ):  # fmt: skip
        assert prepare(options).draft is None
    monkeypatch.setattr(look, "embedded_draft_path", lambda: None)
    assert prepare(LaunchOptions()).resolved.worker.drafts is None


def test_random_weights_need_no_file_of_weights(tmp_path: Path, draft: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "params.json").write_text((draft / "params.json").read_text())
    options = LaunchOptions(speculative_draft_model_path=str(folder))
    with pytest.raises(CheckpointError, match="no complete layout"):
        prepare(options)
    for wish in ({"load_format": "dummy"}, {"speculative_draft_load_format": "dummy"}):
        prepared = prepare(dataclasses.replace(options, **wish))  # type: ignore[arg-type]
        assert prepared.draft is not None and not prepared.draft.tensors
        assert prepared.resolved.worker.drafts is not None
        assert prepared.resolved.worker.drafts.load_format == "dummy"
