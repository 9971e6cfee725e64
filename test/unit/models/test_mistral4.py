"""Logits of latent attention with experts equal transformers' far beyond the original context and the query scale's
knees, in both layouts and however the rows are cut into steps.

Where transformers' reading of the published configuration differs from the formulas: see reference_mistral4().
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from slipstream.hf_transformers.inspect import inspect_checkpoint
from slipstream.models.tables import TABLES
from support.checkpoints import write_hf
from support.models import compute_logits, load_model
from support.moe_checkpoints import MLA_PARAMS, native_moe_tensors, reference_mistral4, write_params
from support.parity import PAGES, TOLERANCE, assert_close, expected_logits, in_steps, tokens_of

NUM_TOKENS = 75  # the original context is 32, so the query scale has knees at 32 and 64
YARN, MOE = MLA_PARAMS["yarn"], MLA_PARAMS["moe"]
CASES: dict[str, dict[str, Any]] = {
    "Small 4": {},
    "Large 3": {"n_layers": 3, "moe": MOE | {"first_k_dense_replace": 1}},
    "apply_scale": {"yarn": YARN | {"apply_scale": True}},
    "queries in one step": {"q_lora_rank": None},
    "two shared experts": {"moe": MOE | {"num_shared_experts": 2}},
    "routed_scale": {"moe": MOE | {"routed_scale": 2.5}},
    "every expert": {"moe": MOE | {"num_experts": 4, "num_experts_per_tok": 4}},
    "values wider than keys": {"v_head_dim": 40},
    "tied": {"tied_embeddings": True},
}


def write(folder: Path, reference: Any, params: dict[str, Any], layout: str = "native") -> Path:
    return (
        write_hf(folder, reference) if layout == "hf" else write_params(folder, params, native_moe_tensors(reference))
    )


@pytest.mark.parametrize("layout", ["native", "hf"])
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_whole_prompt(tmp_path: Path, layout: str, changes: dict[str, Any]) -> None:
    params = MLA_PARAMS | changes
    reference, tokens = reference_mistral4(params), tokens_of(NUM_TOKENS)
    assert_close(in_steps(write(tmp_path, reference, params, layout), tokens, []), expected_logits(reference, tokens))


@pytest.mark.parametrize("cuts", [[33], [20, 23, 64], list(range(1, NUM_TOKENS))], ids=len)
@pytest.mark.parametrize("name", ["Small 4", "Large 3"])
def test_chunks_and_decode_equal_the_whole(tmp_path: Path, name: str, cuts: list[int]) -> None:
    params = MLA_PARAMS | CASES[name]
    reference, tokens = reference_mistral4(params), tokens_of(NUM_TOKENS, 2)
    assert_close(in_steps(write(tmp_path, reference, params), tokens, cuts), expected_logits(reference, tokens))


def test_rows_that_are_not_kept_leave_their_keys_and_values(tmp_path: Path) -> None:
    reference = reference_mistral4()
    model, attention = load_model(write(tmp_path, reference, MLA_PARAMS), num_pages=128)
    tokens = tokens_of(NUM_TOKENS)
    compute_logits(model, attention, [(tokens[:40], 0, PAGES)], kept_rows=[39])
    end = compute_logits(model, attention, [(tokens[40:], 40, PAGES)], kept_rows=[34, 2])
    assert_close(end, expected_logits(reference, tokens)[[74, 42]])


def test_ragged_batch_equals_each_request_alone(tmp_path: Path) -> None:
    """Every row has its own angle and query scale: decode rows on both sides of a knee beside chunks."""
    reference = reference_mistral4()
    model, attention = load_model(write(tmp_path, reference, MLA_PARAMS), num_pages=128)
    ends, starts = [32, 65, 70, 14], [31, 64, 40, 0]
    prompts = [tokens_of(NUM_TOKENS, 10 + index)[:end] for index, end in enumerate(ends)]
    tables = [[1 + 20 * index + column for column in range(20)] for index in range(4)]
    for tokens, start, table in zip(prompts, starts, tables, strict=True):
        if start:
            compute_logits(model, attention, [(tokens[:start], 0, table)])
    rows = [(tokens[start:], start, table) for tokens, start, table in zip(prompts, starts, tables, strict=True)]
    expected = [expected_logits(reference, tokens)[start:] for tokens, start in zip(prompts, starts, strict=True)]
    assert_close(compute_logits(model, attention, rows), torch.cat(expected))


@pytest.mark.parametrize(
    "other",
    [CASES["apply_scale"], CASES["routed_scale"], {"llama_4_scaling": MLA_PARAMS["llama_4_scaling"] | {"beta": 0.0}}],
)
def test_the_cases_differ(other: dict[str, Any]) -> None:
    """Or else the parity above would prove nothing."""
    one, two = (
        expected_logits(reference_mistral4(MLA_PARAMS | changes), tokens_of(NUM_TOKENS)) for changes in ({}, other)
    )
    assert float((one - two).abs().max()) > 100 * TOLERANCE


def test_the_cache_holds_one_latent_for_all_heads(tmp_path: Path) -> None:
    spec = inspect_checkpoint(str(write(tmp_path, reference_mistral4(), MLA_PARAMS)), needs_tokenizer=False)
    layers = TABLES.get(spec.architecture).attention_layers(spec.config)
    assert [layer.cache_shape for layer in layers] == [(1, 1, 40)] * 2
    assert [layer.scale for layer in layers] == pytest.approx([20**-0.5] * 2)


def test_bfloat16_is_as_close_as_its_rounding(tmp_path: Path) -> None:
    """Rows whose routing the rounding of hidden states does not change are close; few change it."""
    reference, tokens = reference_mistral4().to(torch.bfloat16), tokens_of(NUM_TOKENS, 3)
    model, attention = load_model(write(tmp_path, reference, MLA_PARAMS), torch.bfloat16)
    exact = expected_logits(reference.float(), tokens)
    errors = (compute_logits(model, attention, [(tokens, 0, PAGES)]) - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert float(errors.median()) < 0.02  # bf16 keeps 8 bits: 0.4 % per operation
    assert int((errors > 0.05).sum()) <= NUM_TOKENS // 10


SMALL4 = {
    "vocab_size": 131072,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "q_lora_rank": 1024,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 0,
    "rope_interleave": True,
    "tie_word_embeddings": False,
    "softmax_scale": 128**-0.5,
}
LARGE3 = SMALL4 | {
    "hidden_size": 7168,
    "intermediate_size": 16384,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "moe_intermediate_size": 4096,
    "first_k_dense_replace": 3,
}


@pytest.mark.parametrize(
    ("config", "billions", "values_per_token"),
    [(SMALL4, 118.97, 11520), (LARGE3, 673.4, 35136)],
    ids=["Small 4", "Large 3"],
)
def test_tables_count_the_published_models(config: dict[str, Any], billions: float, values_per_token: int) -> None:
    """Parameters without the vision encoder, and values in the KV cache for one token."""
    tables = TABLES.get("Mistral4ForCausalLM")
    shapes = tables.parameter_shapes(config)
    total = sum(torch.Size(shape.full_shape).numel() for shape in shapes.values())
    assert total / 1e9 == pytest.approx(billions, rel=5e-4)
    layers = tables.attention_layers(config)
    assert sum(torch.Size(layer.cache_shape).numel() for layer in layers) == values_per_token
