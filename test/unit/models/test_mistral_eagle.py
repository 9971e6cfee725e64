"""Hidden states of the Mistral EAGLE drafts equal those of the formulas (support/draft_reference.py), far beyond the
original context and the query scale's knees, however the rows are cut into steps; and no part may be left out.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from slipstream.models.drafts.registry import DRAFT_MODELS
from support.checkpoints import PARAMS
from support.draft_checkpoints import draft_params, quantise_static, write_draft
from support.draft_reference import DraftReference
from support.drafts import Rows, load_draft, random_rows, run_draft, run_in_steps
from support.moe_checkpoints import MLA_PARAMS, write_params

TOLERANCE = 2e-5  # in fp32, of values of size 1
NUM_ROWS, DIM = 75, 48  # the original context is 32, so the query scale has knees at 32 and 64
STRETCHED = {
    "yarn": {"factor": 4, "original_max_position_embeddings": 32, "beta": 4, "alpha": 1, "apply_scale": True},
    "llama_4_scaling": {"original_max_position_embeddings": 32, "beta": 0.3},
}
GQA, MLA = PARAMS | STRETCHED, MLA_PARAMS | STRETCHED
MOE = MLA["moe"]
TARGETS: dict[str, tuple[dict[str, Any], bool]] = {  # params.json of the target, and whether its draft has experts
    "GQA": (GQA, False),
    "MLA": (MLA, False),
    "MLA with experts": (MLA, True),
}
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    "plain": (PARAMS, False),
    "window": (PARAMS | {"sliding_window": 9}, False),
    "GQA, yarn without its factor": (GQA | {"yarn": GQA["yarn"] | {"apply_scale": False}}, False),
    "MLA, yarn without its factor": (MLA | {"yarn": MLA["yarn"] | {"apply_scale": False}}, False),
    "no query scale": ({key: value for key, value in GQA.items() if key != "llama_4_scaling"}, False),
    "queries in one step": (MLA | {"q_lora_rank": None}, False),
    "routed_scale": (MLA | {"moe": MOE | {"routed_scale": 2.5}}, True),
    "two shared experts": (MLA | {"moe": MOE | {"num_shared_experts": 2}}, True),
}
CUTS: dict[str, list[int]] = {
    "whole": [],
    "chunks": [20, 23, 33, 64],
    "one by one": list(range(1, NUM_ROWS)),
}


def write(folder: Path, name: str, **options: Any) -> Path:
    params, experts = TARGETS[name]
    return write_draft(folder, params, experts=experts, **options)


def row_errors(actual: Tensor, expected: Tensor) -> Tensor:
    """The largest of each row."""
    return (actual - expected).abs().amax(-1)


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("name", TARGETS)
def test_equals_the_formulas(tmp_path: Path, name: str, cuts: list[int]) -> None:
    folder = write(tmp_path, name)
    x, hidden = random_rows(NUM_ROWS, DIM)
    actual = run_in_steps(folder, x, hidden, cuts)
    assert actual.dtype == torch.float32
    assert float(row_errors(actual, DraftReference.read(folder).forward(x, hidden)).max()) <= TOLERANCE


@pytest.mark.parametrize(("params", "experts"), VARIANTS.values(), ids=VARIANTS)
def test_variants(tmp_path: Path, params: dict[str, Any], experts: bool) -> None:
    folder = write_draft(tmp_path, params, experts=experts, num_layers=3)
    x, hidden = random_rows(NUM_ROWS, DIM, seed=2)
    actual = run_in_steps(folder, x, hidden, [33])
    assert float(row_errors(actual, DraftReference.read(folder).forward(x, hidden)).max()) <= TOLERANCE


@pytest.mark.parametrize(
    "change",
    [
        {"final_norm": False},
        {"yarn_factor": False},
        {"first_attention_norm": False},
        {"query_scale": False},
        {"hidden_first": True},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("name", TARGETS)
def test_no_part_may_be_left_out(tmp_path: Path, name: str, change: dict[str, bool]) -> None:
    """A reference without one part is far from ours: the tests above would fail if ours lost that part. The query scale
    is 1 in the first rows, and in row 0 nothing depends on scores, so rows behind the first knee count.
    """
    folder = write(tmp_path, name)
    x, hidden = random_rows(NUM_ROWS, DIM)
    without = DraftReference.read(folder, **change).forward(x, hidden)
    errors = row_errors(run_in_steps(folder, x, hidden, []), without)
    assert float(errors[32:].min()) > 100 * TOLERANCE
    assert float(errors.median()) > 1000 * TOLERANCE


@pytest.mark.parametrize("name", TARGETS)
def test_stretched_frequencies_matter(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, name)
    reference = DraftReference.read(folder)
    longer = replace(reference, params=reference.params | {"yarn": reference.params["yarn"] | {"alpha": 3.5}})
    x, hidden = random_rows(NUM_ROWS, DIM)
    errors = row_errors(run_in_steps(folder, x, hidden, []), longer.forward(x, hidden))
    assert float(errors.max()) > 100 * TOLERANCE


@pytest.mark.parametrize("name", TARGETS)
def test_ragged_batch_equals_each_request_alone(tmp_path: Path, name: str) -> None:
    """Single rows on both sides of a knee beside chunks of several rows, from their start and from within."""
    folder = write(tmp_path, name)
    model, attention = load_draft(folder)
    starts, ends = [31, 64, 40, 0, 3], [32, 65, 70, 14, 37]
    inputs = [random_rows(end, DIM, seed=10 + index) for index, end in enumerate(ends)]
    pages = [[1 + 20 * index + column for column in range(20)] for index in range(len(ends))]
    for (x, hidden), start, table in zip(inputs, starts, pages, strict=True):
        if start:
            run_draft(model, attention, [Rows(x[:start], hidden[:start], 0, table)])
    rows = [
        Rows(x[start:], hidden[start:], start, table)
        for (x, hidden), start, table in zip(inputs, starts, pages, strict=True)
    ]
    reference = DraftReference.read(folder)
    expected = [reference.forward(x, hidden)[start:] for (x, hidden), start in zip(inputs, starts, strict=True)]
    actual = run_draft(model, attention, rows).logits_hidden
    assert float(row_errors(actual, torch.cat(expected)).max()) <= TOLERANCE


@pytest.mark.parametrize("name", TARGETS)
def test_feedback_takes_the_place_of_the_targets_hidden_state(tmp_path: Path, name: str) -> None:
    """Rows behind those of the target's hidden states, each with what the row before it gave back."""
    num_known, num_drafted = 31, 5
    folder = write(tmp_path, name)
    x, known = random_rows(num_known + num_drafted, DIM, seed=3)
    model, attention = load_draft(folder)
    pages, reference = list(range(1, 12)), DraftReference.read(folder)
    out = run_draft(model, attention, [Rows(x[:num_known], known[:num_known], 0, pages)])
    feedback, fed = out.feedback_hidden[-1:], known[:num_known].double()
    for row in range(num_known, num_known + num_drafted):
        fed = torch.cat((fed, reference.forward(x[:row], fed)[-1:]))
        out = run_draft(model, attention, [Rows(x[row : row + 1], feedback, row, pages)])
        feedback = out.feedback_hidden
        expected = reference.forward(x[: row + 1], fed)[-1:]
        assert float(row_errors(out.logits_hidden, expected).max()) <= TOLERANCE
        assert float(row_errors(out.feedback_hidden, expected).max()) <= TOLERANCE


def assert_rounded_alike(actual: Tensor, expected: Tensor, unrounded: Tensor) -> None:
    """A sum on the other side of a rounding boundary moves one activation by a 16th, and with it its row: how often
    depends on the processor's order of additions. Not rounding moves all of them.
    """
    errors = row_errors(actual, expected)
    assert float(errors.median()) <= TOLERANCE
    assert float(errors.max()) <= 0.5
    assert float(row_errors(unrounded, expected).median()) > 1000 * TOLERANCE


@pytest.mark.parametrize("cuts", [CUTS["chunks"], CUTS["one by one"]], ids=["chunks", "one by one"])
@pytest.mark.parametrize("name", TARGETS)
def test_fp8(tmp_path: Path, name: str, cuts: list[int]) -> None:
    folder = write(tmp_path, name, fp8=True)
    x, hidden = random_rows(NUM_ROWS, DIM)
    expected, unrounded = (
        DraftReference.read(folder, rounds_activations=rounds).forward(x, hidden) for rounds in (True, False)
    )
    assert_rounded_alike(run_in_steps(folder, x, hidden, cuts), expected, unrounded)


@pytest.mark.parametrize("name", ["GQA", "MLA"])
def test_fp8_fusion_alone(tmp_path: Path, name: str) -> None:
    """eagle_linear in FP8, all else not: it goes through the linear layers that serve every FP8 matrix."""
    plain = DraftReference.read(write(tmp_path / "plain", name))
    tensors = quantise_static(plain.tensors, lambda tensor: tensor == "eagle_linear.weight")
    assert tensors["eagle_linear.weight"].dtype == torch.float8_e4m3fn
    assert sum(tensor.dtype == torch.float8_e4m3fn for tensor in tensors.values()) == 1
    folder = write_params(tmp_path / "fp8", draft_params(TARGETS[name][0], 2, fp8=True), tensors)
    x, hidden = random_rows(NUM_ROWS, DIM)
    reference = DraftReference.read(folder)
    unrounded = replace(reference, rounds_activations=False).forward(x, hidden)
    assert_rounded_alike(run_in_steps(folder, x, hidden, []), reference.forward(x, hidden), unrounded)


def test_every_kind_of_draft_has_a_model() -> None:
    assert DRAFT_MODELS.names() == ["MistralForCausalLMEagle", "MistralLarge3ForCausalLMEagle"]
