"""A draft beside its target: each has its own configuration, dtype and quantisation; head and embedding are shared."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from slipstream.attention.torch_native import TorchNativeAttention
from slipstream.hf_transformers.inspect import inspect_checkpoint, inspect_draft
from slipstream.models.base import CausalLM
from slipstream.models.drafts.registry import DRAFT_MODELS
from slipstream.worker.weight_plan import WeightPlan
from support.checkpoints import PARAMS, reference_model, write_native
from support.draft_checkpoints import STATIC_FP8, quantise_static, write_copying_draft, write_draft
from support.draft_reference import DraftReference
from support.drafts import Rows, load_draft, random_rows, run_draft, run_in_steps
from support.models import CPU, compute_logits, load_model
from support.moe_checkpoints import MLA_PARAMS, native_moe_tensors, reference_mistral4, write_params
from support.parity import PAGES, tokens_of

STRETCHED = {
    "yarn": {"factor": 4, "original_max_position_embeddings": 32, "beta": 4, "alpha": 1, "apply_scale": True},
    "llama_4_scaling": {"original_max_position_embeddings": 32, "beta": 0.3},
}
DENSE = {"moe": MLA_PARAMS["moe"] | {"first_k_dense_replace": 2}}
KINDS = ["GQA", "MLA", "MLA with experts"]


def write_target(folder: Path, kind: str, *, fp8: bool = False) -> Path:
    if kind == "GQA":
        write_native(folder, reference_model(**STRETCHED), **STRETCHED)
    else:
        params = MLA_PARAMS | STRETCHED | (DENSE if kind == "MLA" else {})
        write_params(folder, params, native_moe_tensors(reference_mistral4(params)))
    if fp8:
        params = params_of(folder) | {"quantization": STATIC_FP8}
        write_params(folder, params, quantise_static(load_file(folder / "consolidated.safetensors")))
    return folder


def params_of(folder: Path) -> dict[str, Any]:
    params: dict[str, Any] = json.loads((folder / "params.json").read_text())
    return params


def logits_of(model: CausalLM, attention: TorchNativeAttention) -> Tensor:
    return compute_logits(model, attention, [(tokens_of(40), 0, PAGES)])


@pytest.mark.parametrize("fp8", [(False, True), (True, False)], ids=["FP8 draft", "FP8 target"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_changes_nothing_of_its_target(tmp_path: Path, kind: str, fp8: tuple[bool, bool]) -> None:
    """Neither configuration is touched by building and running both, and the target computes what it did without."""
    target_folder = write_target(tmp_path / "target", kind, fp8=fp8[0])
    draft_folder = write_draft(
        tmp_path / "draft", params_of(target_folder), experts=kind == "MLA with experts", fp8=fp8[1], norm_eps=1e-3
    )
    target, draft = inspect_checkpoint(str(target_folder), needs_tokenizer=False), inspect_draft(str(draft_folder))
    assert (target.quantization is not None, draft.quantization is not None) == fp8
    before = copy.deepcopy((dataclasses.asdict(target), dataclasses.asdict(draft)))
    model, attention = load_model(target_folder)
    alone = logits_of(model, attention)

    parameters = WeightPlan(draft).fill(torch.float32, CPU, 0, lambda done, total: None)
    DRAFT_MODELS.get(draft.architecture)(draft.config, parameters, CPU)
    x, hidden = random_rows(40, 48)
    drafted = run_in_steps(draft_folder, x, hidden, [])
    assert (dataclasses.asdict(target), dataclasses.asdict(draft)) == before
    assert torch.equal(logits_of(model, attention), alone)
    assert torch.equal(logits_of(*load_model(target_folder)), alone)  # nor one that is built after it
    expected = DraftReference.read(draft_folder).forward(x, hidden)  # with its own norm_eps and scales
    assert float((drafted - expected).abs().amax(-1).median()) <= 2e-5


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_may_have_another_dtype(tmp_path: Path, kind: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """The head of a target in one dtype reads hidden states of a draft in the other."""
    target_dtype, draft_dtype = dtypes
    target_folder = write_target(tmp_path / "target", kind)
    draft_folder = write_draft(
        tmp_path / "draft", params_of(target_folder), experts=kind == "MLA with experts", dtype=draft_dtype
    )
    model, _ = load_model(target_folder, target_dtype)
    draft, attention = load_draft(draft_folder, draft_dtype)
    x, (_, hidden) = model.embed(torch.tensor(tokens_of(40))), random_rows(40, 48)
    out = run_draft(draft, attention, [Rows(x, hidden.to(target_dtype), 0, PAGES)])
    assert out.logits_hidden.dtype == out.feedback_hidden.dtype == target_dtype
    assert model.compute_logits(out.logits_hidden).shape == (40, 97)
    expected = DraftReference.read(draft_folder).forward(x, hidden.to(target_dtype))
    errors = (out.logits_hidden - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert float(errors.median()) < 0.02  # bf16 keeps 8 bits: 0.4 % per operation
    if draft_dtype == torch.float32:
        assert float(errors.median()) < 0.003  # rounded once, at the end


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_that_copies_its_target_is_right_often(tmp_path: Path, kind: str) -> None:
    """Row k, from the embedding of token k + 1 and the target's hidden state of token k, predicts token k + 2. Held
    against any other token such a draft is right as seldom as by chance.
    """
    target_folder = write_target(tmp_path / "target", kind)
    model, attention = load_model(target_folder)
    tokens = tokens_of(80)
    chosen = compute_logits(model, attention, [(tokens, 0, PAGES)]).argmax(-1)  # [k] stands for token k + 1
    x = model.embed(torch.tensor(tokens[1:]))

    def drafted(noise: float) -> Tensor:
        folder = write_copying_draft(tmp_path / f"noise{noise}", target_folder, noise=noise)
        draft, own = load_draft(folder)
        out = run_draft(draft, own, [Rows(x, torch.zeros_like(x), 0, PAGES)])
        return model.compute_logits(out.logits_hidden).argmax(-1)

    def share_right(drafts: Tensor, shift: int) -> float:
        pairs = [(k, k + shift) for k in range(len(drafts)) if k + shift < len(chosen)]
        return sum(int(drafts[k] == chosen[other]) for k, other in pairs) / len(pairs)

    exact = drafted(0.0)
    assert share_right(exact, 1) > 0.3
    assert max(share_right(exact, shift) for shift in (0, 2)) < 0.15
    assert share_right(drafted(3.0), 1) < 0.15


def test_random_weights(tmp_path: Path) -> None:
    """A draft of a configuration alone, to measure speed."""
    folder = write_draft(tmp_path, PARAMS)
    (folder / "consolidated.safetensors").unlink()
    spec = inspect_draft(str(folder), "dummy")
    parameters = WeightPlan(spec).fill(torch.float32, CPU, 0, lambda done, total: None)
    assert all(name.startswith("draft.") for name in parameters.remaining())
    DRAFT_MODELS.get(spec.architecture)(spec.config, parameters, CPU)
    assert parameters.remaining() == []
