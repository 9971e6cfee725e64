"""What is trained is what is served: the trainer's draft equals models/drafts/mistral_eagle.py, its target the server's
model, so that no formula can differ between the two.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from slipstream.attention.paging import make_layout
from support.checkpoints import PARAMS, native_tensors, reference_model, write_native
from support.draft_checkpoints import STATIC_FP8, quantise_static, write_draft
from support.drafts import random_rows, run_in_steps
from support.models import PAGE_SIZE, compute_logits, load_model
from support.moe_checkpoints import (
    MIXTRAL_PARAMS,
    MLA_PARAMS,
    native_moe_tensors,
    reference_mistral4,
    reference_mixtral,
    write_params,
)
from support.vision_checkpoints import vision_reference, write_native_vision

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))

from embedded_training.draft_loaded_target import LoadedTarget, target_spec
from embedded_training.draft_model import DraftModel, load_draft, save_draft
from embedded_training.draft_params import draft_params
from embedded_training.draft_target import EmbeddedTarget
from slipstream.errors import ConfigError
from slipstream.hf_transformers.embedded import embedded_path

TOLERANCE = 1e-4
NUM_ROWS, DIM = 75, 48  # the original context is 32, so the query scale has knees at 32 and 64
STRETCHED = {
    "yarn": {"factor": 4, "original_max_position_embeddings": 32, "beta": 4, "alpha": 1, "apply_scale": True},
    "llama_4_scaling": {"original_max_position_embeddings": 32, "beta": 0.3},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "yarn and query scale": STRETCHED,
    "yarn without its factor": {"yarn": STRETCHED["yarn"] | {"apply_scale": False}},
    "query scale alone": {"llama_4_scaling": STRETCHED["llama_4_scaling"]},
}
TARGETS: dict[str, dict[str, Any]] = {
    "untied head": {},
    "tied head": {"tied_embeddings": True},
    "yarn and query scale": STRETCHED,
    "window": {"sliding_window": 9},
    "windows in turns": {"sliding_window": [9, None, 9]},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def trainers(draft: DraftModel, x: Tensor, hidden: Tensor) -> Tensor:
    with torch.no_grad():
        return draft(x[None], hidden[None])[0]


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max())


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_draft_from_the_trainer_is_served_alike(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Random weights of the trainer, written by it, in chunks and single rows through the serving model."""
    torch.manual_seed(0)
    draft = DraftModel(draft_params(PARAMS | changes, 2, 56))
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape)).copy_(parameter.bfloat16())  # as exact as the file
    save_draft(draft, tmp_path)
    x, hidden = random_rows(NUM_ROWS, DIM)
    served = run_in_steps(tmp_path, x, hidden, [20, 33, 64, *range(65, NUM_ROWS)])
    assert error(trainers(draft, x, hidden), served) <= TOLERANCE
    assert error(trainers(load_draft(tmp_path, torch.float32), x, hidden), served) <= TOLERANCE


@pytest.mark.parametrize("missing", ["yarn", "llama_4_scaling"])
def test_a_lost_key_would_show(tmp_path: Path, missing: str) -> None:
    """The test above could see it: without one key the draft computes something else."""
    folder = write_draft(tmp_path, PARAMS | STRETCHED)
    x, hidden = random_rows(NUM_ROWS, DIM)
    served = run_in_steps(folder, x, hidden, [])
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps({key: value for key, value in params.items() if key != missing}))
    assert error(trainers(load_draft(folder, torch.float32), x, hidden), served) > 100 * TOLERANCE


def test_the_unrolled_steps_are_those_of_serving(tmp_path: Path) -> None:
    """The rows that the draft makes alone, far from position 0, where each step stands one position further."""
    folder = write_draft(tmp_path, PARAMS | STRETCHED)
    draft = load_draft(folder, torch.float32)
    embeddings, hidden = random_rows(NUM_ROWS, DIM)
    with torch.no_grad():
        nothing = torch.zeros(1, NUM_ROWS)
        outs, _, _ = draft.unrolled(embeddings[None], hidden[None], torch.zeros(4, DIM), hidden[None], nothing, 3)
    for anchor in (0, 30, 64):
        states = hidden[: anchor + 1]
        for step in range(3):
            served = run_in_steps(folder, embeddings[1 : anchor + step + 2], states, [])[-1]
            assert error(outs[step][0, anchor], served) <= TOLERANCE
            states = torch.cat([states, served[None]])


def test_the_embedded_draft_is_served_as_it_was_trained() -> None:
    """On the embedded model's own hidden states, the trainer's and the server's."""
    folder = embedded_path() / "draft"
    target, draft = EmbeddedTarget(embedded_path(), torch.float32, "cpu"), load_draft(folder, torch.float32)
    torch.manual_seed(0)
    tokens = torch.randint(64, 3072, (1, 300))
    tokens[0, 0] = 1
    model, attention = load_model(embedded_path(), num_pages=80)
    layout, positions = make_layout(torch.arange(80, dtype=torch.int32)[None], PAGE_SIZE, [0], [0], [300], 0)
    attention.plan(layout)
    hidden = model.forward(model.embed(tokens[0]), positions, attention)
    assert error(target.hidden(tokens)[0], hidden) <= 10 * TOLERANCE  # of values up to 20, after 16 layers
    x = model.embed(tokens[0, 1:])
    served = run_in_steps(folder, x, hidden[:-1], [100, 250, 251, 252])
    ours = trainers(draft, x, hidden[:-1])
    assert error(ours, served) <= TOLERANCE
    logits = ours @ target.head.T
    assert logits.argmax(-1).equal(model.compute_logits(served).argmax(-1))


@pytest.mark.parametrize("changes", TARGETS.values(), ids=TARGETS)
def test_a_loaded_target_computes_what_is_served(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = write_native(tmp_path, reference_model(**changes), **changes)
    check_target(folder, PARAMS["vocab_size"])


def test_a_loaded_target_may_have_experts(tmp_path: Path) -> None:
    write_params(tmp_path, MIXTRAL_PARAMS, native_moe_tensors(reference_mixtral(MIXTRAL_PARAMS)))
    check_target(tmp_path, MIXTRAL_PARAMS["vocab_size"])


def test_a_loaded_target_may_have_a_vision_encoder(tmp_path: Path) -> None:
    folder = write_native_vision(tmp_path, vision_reference())
    check_target(folder, PARAMS["vocab_size"])
    params = json.loads((folder / "params.json").read_text())
    assert draft_params(params, 1, 24) == PARAMS | {"n_layers": 1, "hidden_dim": 24}


def test_a_loaded_target_may_be_stored_in_fp8(tmp_path: Path) -> None:
    """Where a rounding falls to the other side is the processor's choice, so most rows are equal, not all."""
    tensors = quantise_static(native_tensors(reference_model(), PARAMS["head_dim"]))
    folder = write_params(tmp_path, PARAMS | {"quantization": STATIC_FP8}, tensors)
    (folder / "tekken.json").write_text("{}")
    target = LoadedTarget(target_spec(folder), torch.float32, "cpu")
    tokens = torch.arange(2, 42)
    model, attention = load_model(folder)
    served = compute_logits(model, attention, [(tokens.tolist(), 0, list(range(1, 12)))])
    errors = (target.hidden(tokens[None])[0] @ target.head.T - served).abs().amax(-1)
    assert float(errors.median()) <= 1e-3


def check_target(folder: Path, vocab_size: int) -> None:
    """Logits of several rows at once and greedy continuations are those of the served model."""
    target = LoadedTarget(target_spec(folder), torch.float32, "cpu")
    torch.manual_seed(1)
    tokens = torch.randint(vocab_size, (3, 50))
    starts = torch.tensor([4, 11, 30])
    written = target.continue_rows(tokens, starts, torch.zeros(3, 50))
    logits = target.hidden(written) @ target.head.T
    for row, start in zip(range(3), starts.tolist(), strict=True):
        model, attention = load_model(folder)
        pages = list(range(1, 2 + 50 // PAGE_SIZE))
        served = compute_logits(model, attention, [(written[row].tolist(), 0, pages)])
        assert error(logits[row], served) <= 1e-3  # of logits up to 100
        assert written[row, :start].equal(tokens[row, :start])
        assert written[row, start:].equal(served.argmax(-1)[start - 1 : -1])
        assert target.embeddings[written[row]].equal(model.embed(written[row]))


def test_latent_attention_is_refused_by_name(tmp_path: Path) -> None:
    write_params(tmp_path, MLA_PARAMS, native_moe_tensors(reference_mistral4(MLA_PARAMS)))
    with pytest.raises(ConfigError, match="kv_lora_rank"):
        target_spec(tmp_path)


def test_what_a_draft_inherits() -> None:
    """Rotation, head sizes and lengths; no windows, experts, quantisation or encoder."""
    target = PARAMS | STRETCHED | {
        "sliding_window": 9, "moe": {"num_experts": 4}, "vision_encoder": {"hidden_size": 8},
        "quantization": {"qformat_weight": "fp8_e4m3"}, "max_seq_len": 200,
    }  # fmt: skip
    expected = PARAMS | STRETCHED | {"max_seq_len": 200, "n_layers": 1, "hidden_dim": 24}
    assert draft_params(target, 1, 24) == expected
