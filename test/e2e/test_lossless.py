"""Speculation changes no token: a seeded cover of the table that scripts/lossless.py runs whole."""

import random
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from slipstream.hf_transformers.embedded import embedded_path
from support.checkpoints import reference_model, write_native
from support.draft_checkpoints import write_copying_draft
from support.moe_checkpoints import MLA_PARAMS, native_moe_tensors, reference_mistral4, write_params
from support.scripts import load_script

lossless = load_script("lossless")
NUM_PROMPTS = 10
PAIRS = ("embedded", "GQA", "MLA", "MoE")
STRETCHED = {
    "yarn": {"factor": 16, "original_max_position_embeddings": 32, "beta": 4, "alpha": 1, "apply_scale": True},
    "llama_4_scaling": {"original_max_position_embeddings": 32, "beta": 0.3},
    "max_position_embeddings": 512,
    "vocab_size": 3072,  # that of the embedded tokenizer
}
CELLS = lossless.pairwise_cover(lossless.table(PAIRS), seed=4, limit=30)


@dataclass(frozen=True)
class Pair:
    """Folders of target and draft, None for those that ship; and what is asked."""

    target: str | None
    draft: str | None
    prompts: list[Any]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    folder = tmp_path_factory.mktemp("pairs")
    made = {"embedded": Pair(None, None, lossless.text_prompts(NUM_PROMPTS))}
    for kind in PAIRS[1:]:
        target = write_target(folder / kind / "target", kind)
        draft = write_copying_draft(folder / kind / "draft", target, noise=0.02)
        made[kind] = Pair(str(target), str(draft), random_prompts())
    return made


def write_target(folder: Path, kind: str) -> Path:
    """A random tiny model, stretched by YaRN and with scaled queries."""
    if kind == "GQA":
        write_native(folder, reference_model(**STRETCHED), **STRETCHED)
    else:
        dense = {"moe": MLA_PARAMS["moe"] | {"first_k_dense_replace": MLA_PARAMS["n_layers"]}}
        params = MLA_PARAMS | STRETCHED | (dense if kind == "MLA" else {})
        write_params(folder, params, native_moe_tensors(reference_mistral4(params)))
    shutil.copy(embedded_path() / "tekken.json", folder)
    return folder


def random_prompts() -> list[Any]:
    """Token ids, some beyond the length from which positions are stretched, some with a common beginning."""
    rng = random.Random(5)
    common = [rng.randrange(100, 3000) for _ in range(40)]
    return [
        common[: rng.choice((0, 33, 40))] + [rng.randrange(100, 3000) for _ in range(rng.randint(1, 40))]
        for _ in range(NUM_PROMPTS)
    ]


@pytest.fixture(scope="module")
def expected(pairs: dict[str, Pair]) -> Any:
    """What the plain engine answers, asked once for each pair and way of sampling."""

    @cache
    def ask(kind: str, sampled: bool) -> list[list[int]]:
        answers: list[list[int]] = lossless.plain_answers(pairs[kind].target, pairs[kind].prompts, sampled)
        return answers

    return ask


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_on_equals_off(cell: Any, pairs: dict[str, Pair], expected: Any) -> None:
    pair = pairs[cell.pair]
    mismatches, length = lossless.run_cell(
        cell, pair.prompts, expected(cell.pair, cell.sampled), pair.target, pair.draft
    )
    assert mismatches == []
    assert length > 1.05, "hardly any draft was accepted: nothing was tested"


def test_the_cover_has_every_pair_of_values() -> None:
    """Of two different properties; 30 cells cannot hold them all, but nearly."""
    table = lossless.table(PAIRS)
    wanted = set().union(*(lossless._pairs(cell) for cell in table))
    found = set().union(*(lossless._pairs(cell) for cell in CELLS))
    assert len(CELLS) <= 30
    assert len(found) >= 0.95 * len(wanted)


def test_a_difference_is_found(pairs: dict[str, Pair], expected: Any) -> None:
    """The comparison can fail: with one token of the expectation changed it does."""
    cell = next(cell for cell in CELLS if cell.pair == "GQA")
    pair = pairs["GQA"]
    answers = [list(answer) for answer in expected("GQA", cell.sampled)]
    answers[3][2] += 1
    mismatches, _ = lossless.run_cell(cell, pair.prompts, answers, pair.target, pair.draft)
    assert [(found.prompt, found.position) for found in mismatches] == [(3, 2), (3, 2)]
