"""Questions name real, documented functions; pieces of source come from files that were held out of training."""

import importlib
import json
import random
from pathlib import Path

import pytest

import slipstream
from slipstream.bench.library_text import (
    HELD_OUT_FILES,
    PIECE_CHARACTERS,
    documented_functions,
    library_folder,
    questions,
    source_pieces,
)
from slipstream.errors import ConfigError


@pytest.mark.parametrize("module", ["textwrap", "posixpath", "json/__init__"])
def test_functions_are_documented_ones_of_the_module(module: str) -> None:
    names = documented_functions(library_folder(), module)
    assert names
    for name in names:
        owner, function = name.rsplit(".", 1)
        assert getattr(importlib.import_module(owner), function).__doc__ and not function.startswith("_")


def test_a_hundred_different_questions() -> None:
    found = questions(random.Random(0), 100)
    assert len(set(found)) == 100
    assert found == questions(random.Random(0), 100)


def test_questions_begin_again_after_the_last(tmp_path: Path) -> None:
    (tmp_path / "ast.py").write_text('def one():\n    "Doc."\ndef two():\n    pass\ndef _three():\n    "Doc."\n')
    assert questions(random.Random(0), 2, tmp_path) == ["What does ast.one do?"] * 2


def test_pieces_begin_with_a_line_of_a_held_out_file() -> None:
    texts = [path.read_text() for name in HELD_OUT_FILES if (path := library_folder() / name).is_file()]
    pieces = source_pieces(random.Random(0), 20)
    assert len(set(pieces)) == 20
    for piece in pieces:
        assert 0 < len(piece) <= PIECE_CHARACTERS and any("\n" + piece in text for text in texts)


def test_the_embedded_model_has_not_seen_these_files() -> None:
    record = json.loads((Path(slipstream.__file__).parent / "embedded" / "training.json").read_text())
    assert set(HELD_OUT_FILES) <= set(record["held_out"]["files"])


def test_a_python_without_sources(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--questions"):
        questions(random.Random(0), 1, tmp_path)
    with pytest.raises(ConfigError, match="--workloads"):
        source_pieces(random.Random(0), 1, tmp_path)
