"""What the Mistral EAGLE drafts hold: names, shapes and counts of the published files."""

from math import prod
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from slipstream.errors import CheckpointError
from slipstream.hf_transformers.inspect import inspect_draft
from slipstream.hf_transformers.spec import TensorInfo
from slipstream.models.match import Match
from slipstream.models.tables import TABLES
from slipstream.weights.accounting import account, placements
from support.checkpoints import PARAMS
from support.draft_checkpoints import draft_params, write_draft
from support.moe_checkpoints import MLA_PARAMS, write_params

MEDIUM: dict[str, Any] = {  # Medium-3.5-128B-EAGLE
    "vocab_size": 131072,
    "hidden_size": 12288,
    "intermediate_size": 28672,
    "num_hidden_layers": 2,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "softmax_scale": 128**-0.5,
}
SMALL4: dict[str, Any] = {  # Small-4-119B-2603-eagle: dense layers only
    "vocab_size": 131072,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "q_lora_rank": 1024,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 0,
    "n_shared_experts": 0,
    "moe_intermediate_size": 12288,
    "first_k_dense_replace": 2,
    "rope_interleave": True,
    "tie_word_embeddings": False,
    "softmax_scale": 128**-0.5,
}
LARGE3: dict[str, Any] = SMALL4 | {  # Large-3-675B-Instruct-2512-Eagle: one layer with experts
    "hidden_size": 7168,
    "intermediate_size": 16384,
    "num_hidden_layers": 1,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "moe_intermediate_size": 4096,
    "first_k_dense_replace": 0,
}
GQA, MLA = "MistralForCausalLMEagle", "MistralLarge3ForCausalLMEagle"
ATTENTION = {GQA: ("wq", "wk", "wv", "wo"), MLA: ("wq_a", "wq_b", "wkv_a_with_mqa", "wkv_b", "wo")}
NORMS = {GQA: (), MLA: ("attention.q_a_norm", "attention.kv_a_norm")}


def stored_names(architecture: str, config: dict[str, Any]) -> set[str]:
    """The names in the published files, written out."""
    names = {"eagle_linear.weight", "norm.weight"}
    for index in range(config["num_hidden_layers"]):
        layer = f"layers.{index}."
        names |= {f"{layer}attention.{name}.weight" for name in ATTENTION[architecture]}
        names |= {f"{layer}{name}.weight" for name in ("attention_norm", "ffn_norm", *NORMS[architecture])}
        if index >= config.get("first_k_dense_replace", 2):
            names.add(f"{layer}gate.weight")
            modules = [f"experts.{expert}" for expert in range(config["n_routed_experts"])] + ["shared_experts"]
        else:
            modules = ["feed_forward"]
        names |= {f"{layer}{module}.{name}.weight" for module in modules for name in ("w1", "w2", "w3")}
    return names


@pytest.mark.parametrize(
    ("architecture", "config"), [(GQA, MEDIUM), (MLA, SMALL4), (MLA, LARGE3)], ids=["Medium 3.5", "Small 4", "Large 3"]
)
def test_names(architecture: str, config: dict[str, Any]) -> None:
    tables = TABLES.get(architecture)
    name_map = tables.name_map(config, "mistral")
    expected = placements(name_map, tables.parameter_shapes(config))
    assert expected.keys() == stored_names(architecture, config)
    assert expected["eagle_linear.weight"].shape == (config["hidden_size"], 2 * config["hidden_size"])


@pytest.mark.parametrize(
    ("architecture", "config", "published"),
    [(GQA, MEDIUM, 3_070_230_528), (MLA, SMALL4, 391_643_136)],
    ids=["Medium 3.5", "Small 4"],
)
def test_counts_of_the_published_drafts(architecture: str, config: dict[str, Any], published: int) -> None:
    """The published figures count the matrices, which are what is stored in FP8; norms come on top."""
    shapes = TABLES.get(architecture).parameter_shapes(config)
    assert sum(prod(shape.full_shape) for shape in shapes.values() if shape.quantizable) == published
    assert all(name.endswith("norm") for name, shape in shapes.items() if not shape.quantizable)


def test_size_of_the_draft_with_experts() -> None:
    """Large 3's is published as about 11.65 GB: one byte for a value of a matrix, two for the others."""
    shapes = TABLES.get(MLA).parameter_shapes(LARGE3).values()
    size = sum(prod(shape.full_shape) * (1 if shape.quantizable else 2) for shape in shapes)
    assert size / 1e9 == pytest.approx(11.65, abs=0.01)


def test_layers_of_attention() -> None:
    assert [layer.cache_shape for layer in TABLES.get(GQA).attention_layers(MEDIUM)] == [(2, 8, 128)] * 2
    assert [layer.cache_shape for layer in TABLES.get(MLA).attention_layers(SMALL4)] == [(1, 1, 320)] * 2
    assert [layer.cache_shape for layer in TABLES.get(MLA).attention_layers(LARGE3)] == [(1, 1, 576)]


@pytest.mark.parametrize(("architecture", "config"), [(GQA, MEDIUM), (MLA, SMALL4)], ids=["GQA", "MLA"])
def test_what_belongs_to_the_target_is_unexpected(architecture: str, config: dict[str, Any]) -> None:
    tables = TABLES.get(architecture)
    name_map = tables.name_map(config, "mistral")
    expected = placements(name_map, tables.parameter_shapes(config))
    tensors = [TensorInfo(name, place.shape, "BF16", "x") for name, place in expected.items()]
    assert account(tensors, expected, name_map) == []
    table = TensorInfo("tok_embeddings.weight", (config["vocab_size"], config["hidden_size"]), "BF16", "x")
    fake = TensorInfo("layers.0.attention.kv_fake_quantizer.qscale_act", (), "BF16", "x")
    problems = account([*tensors, table, fake], expected, name_map)
    assert len(problems) == 1
    assert "tok_embeddings.weight" in problems[0]


@pytest.mark.parametrize(("architecture", "config"), [(GQA, MEDIUM), (MLA, SMALL4), (MLA, LARGE3)], ids=str)
def test_a_target_may_stand_beside_it(architecture: str, config: dict[str, Any]) -> None:
    """No parameter of a draft has the name of one of its target, though tensors in their files have the same names."""
    target = TABLES.get("MistralForCausalLM" if architecture == GQA else "Mistral4ForCausalLM")
    own, others = TABLES.get(architecture).parameter_shapes(config), target.parameter_shapes(config)
    assert all(name.startswith("draft.") for name in own)
    assert not own.keys() & others.keys()
    assert {name.removeprefix("draft.") for name in own} - others.keys() == {"eagle_linear"}


@pytest.mark.parametrize(
    ("params", "lost", "said"),
    [
        (PARAMS, "eagle_linear.weight", None),  # then it is no draft at all
        (PARAMS, "norm.weight", "missing tensor norm.weight of shape [48]"),
        (PARAMS, "layers.1.attention.wk.weight", "missing tensor layers.1.attention.wk.weight of shape [32, 48]"),
        (MLA_PARAMS, "layers.0.attention.kv_a_norm.weight", "missing tensor layers.0.attention.kv_a_norm.weight"),
    ],
)
def test_a_missing_tensor_has_its_name_in_the_file(
    tmp_path: Path, params: dict[str, Any], lost: str, said: str | None
) -> None:
    tensors = load_file(write_draft(tmp_path / "whole", params) / "consolidated.safetensors")
    del tensors[lost]
    folder = write_params(tmp_path / "cut", draft_params(params, 2), tensors)
    if said is None:
        with pytest.raises(CheckpointError, match=r"this is a target, not a draft: it holds no eagle_linear\.weight"):
            inspect_draft(str(folder))
        return
    [problem] = Match.of(inspect_draft(str(folder))).problems()
    assert problem.startswith(said)
