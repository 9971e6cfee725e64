"""A folder is what its files hold, whatever its name; what is wrong with it is said at once, with names and values."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from slipstream.errors import CheckpointError
from slipstream.hf_transformers.embedded import embedded_path
from slipstream.hf_transformers.inspect import examine, inspect_checkpoint, inspect_draft
from slipstream.hf_transformers.spec import DrafterSpec, ModelSpec
from support.small_configs import HF_CONFIG as SMALL_HF_CONFIG
from support.small_configs import PARAMS

LATENT = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
HF_CONFIG = SMALL_HF_CONFIG | {"eos_token_id": 7, "torch_dtype": "float16"}
FP8_STATED = {"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}}
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
TARGET = {"tok_embeddings.weight": torch.zeros(8, dtype=BF16), "norm.weight": torch.zeros(3)}
DRAFT = {"eagle_linear.weight": torch.zeros(8, dtype=BF16), "norm.weight": torch.zeros(3)}


TEKKEN = json.dumps({"config": {"default_vocab_size": 128}})


def write_native(folder: Path, params: Any = PARAMS, tensors: dict[str, torch.Tensor] = TARGET) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params))
    save_file(tensors, folder / "consolidated.safetensors")
    (folder / "tekken.json").write_text(TEKKEN)
    return folder


def write_draft(folder: Path, params: Any = PARAMS, tensors: dict[str, torch.Tensor] = DRAFT) -> Path:
    (write_native(folder, params, tensors) / "tekken.json").unlink()  # as published
    return folder


def write_hf(folder: Path, config: Any = HF_CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"model.norm.weight": torch.zeros(8, dtype=torch.float16)}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def problems_of(folder: Path, *args: Any, **kwargs: Any) -> list[str]:
    started = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        inspect_checkpoint(str(folder), *args, **kwargs)
    assert time.perf_counter() - started < 5
    assert len(str(caught.value)) < 10_000
    return list(caught.value.problems)


def problem_of(folder: Path, *args: Any, **kwargs: Any) -> str:
    problems = problems_of(folder, *args, **kwargs)
    assert len(problems) == 1, problems
    return problems[0]


def draft_problem_of(folder: Path, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        inspect_draft(str(folder), *args, **kwargs)
    assert len(caught.value.problems) == 1, caught.value.problems
    return caught.value.problems[0]


def test_a_target_in_a_folder_that_is_called_like_a_draft(tmp_path: Path) -> None:
    folder = write_native(tmp_path / "eagle-tests" / "mistral-large-3")
    spec = inspect_checkpoint(str(folder))
    assert type(spec) is ModelSpec
    assert (spec.layout, spec.architecture, spec.name) == ("mistral", "MistralForCausalLM", "mistral-large-3")
    assert spec.layout_reason == "params.json and consolidated.safetensors"
    assert (spec.config["hidden_size"], spec.config["num_hidden_layers"]) == (64, 2)
    assert (spec.dtype, spec.context_length, spec.vocab_size, spec.eos_token_ids) == ("bfloat16", 32768, 128, (2,))
    assert (spec.tokenizer_kind, spec.tokenizer_path) == ("tekken", str(folder / "tekken.json"))
    assert [tensor.name for tensor in spec.tensors] == ["norm.weight", "tok_embeddings.weight"]
    assert (spec.quantization, spec.images, spec.warnings) == (None, None, ())


@pytest.mark.parametrize("name", ["draft", "mistral-large-3", "model"])
def test_a_draft_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    spec = inspect_draft(str(write_draft(tmp_path / name)))
    assert type(spec) is DrafterSpec
    assert (spec.kind, spec.architecture, spec.name) == ("mistral_eagle", "MistralForCausalLMEagle", name)
    assert (spec.hidden_source, spec.embed, spec.head, spec.warnings) == ("final_normed", "target", "target", ())


def test_latent_attention_makes_the_other_kind_of_eagle(tmp_path: Path) -> None:
    spec = inspect_draft(str(write_draft(tmp_path, PARAMS | LATENT | {"n_kv_heads": 4})))
    assert (spec.kind, spec.architecture) == ("mistral_mla_eagle", "MistralLarge3ForCausalLMEagle")


def test_each_role_has_its_flag(tmp_path: Path) -> None:
    said = problem_of(write_draft(tmp_path / "eagle"))
    assert said.startswith("this is a draft (Mistral EAGLE)") and "--speculative-draft-model-path" in said
    said = draft_problem_of(write_native(tmp_path / "draft"))
    assert said.startswith("this is a target") and "eagle_linear.weight" in said and "--model-path" in said


def test_drafts_of_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    write_hf(tmp_path, HF_CONFIG | {"dflash_config": {"mask_token_id": 3}})
    for said in (draft_problem_of(tmp_path), problem_of(tmp_path)):
        assert "a draft of the kind DFlash" in said and "supported: Mistral EAGLE" in said


def test_with_random_weights_the_caller_says_the_role(tmp_path: Path) -> None:
    (write_draft(tmp_path, PARAMS | {"dtype": "float32"}) / "consolidated.safetensors").unlink()
    target = inspect_checkpoint(str(tmp_path), "dummy", needs_tokenizer=False)
    draft = inspect_draft(str(tmp_path), "dummy")
    assert (target.layout, target.dtype, target.tensors, draft.tensors) == ("mistral", "float32", (), ())
    assert (target.architecture, draft.architecture) == ("MistralForCausalLM", "MistralForCausalLMEagle")


def test_weights_that_are_not_loaded_show_a_draft(tmp_path: Path) -> None:
    said = problem_of(write_draft(tmp_path), "dummy", needs_tokenizer=False)
    assert said.startswith("this is a draft (Mistral EAGLE)")
    index = {"weight_map": {"eagle_linear.weight": "consolidated-00001-of-00002.safetensors"}}
    (tmp_path / "consolidated.safetensors").unlink()
    (tmp_path / "consolidated.safetensors.index.json").write_text(json.dumps(index))
    assert problem_of(tmp_path, "dummy", needs_tokenizer=False) == said
    (tmp_path / "consolidated.safetensors.index.json").write_text("damaged")
    assert inspect_checkpoint(str(tmp_path), "dummy", needs_tokenizer=False).tensors == ()


def test_files_beside_the_index_are_not_read(tmp_path: Path) -> None:
    folder = write_native(tmp_path)
    index = {"weight_map": dict.fromkeys(TARGET, "consolidated.safetensors")}
    (folder / "consolidated.safetensors.index.json").write_text(json.dumps(index))
    for number in range(3):
        save_file(TARGET, folder / f"consolidated-{number}.safetensors")
    spec = inspect_checkpoint(str(folder))
    assert spec.layout_reason == "params.json and consolidated.safetensors"
    assert (
        len(spec.warnings) == 1 and "does not name it: consolidated-0.safetensors, consolidated-1" in spec.warnings[0]
    )


def test_a_tokenizer_of_another_size(tmp_path: Path) -> None:
    folder = write_native(tmp_path)
    (folder / "tekken.json").write_text(json.dumps({"config": {"default_vocab_size": 129}}))
    assert "tekken.json has 129 tokens, but the model's vocabulary has 128" in problem_of(folder)
    with pytest.raises(CheckpointError, match="has 129 tokens"):  # a missing one would be a warning, a wrong one is not
        inspect_checkpoint(str(folder), needs_tokenizer=False)
    (folder / "tekken.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert problem_of(folder) == "tekken.json is a git-lfs pointer, not the file itself: run git lfs pull"
    (folder / "tekken.json").write_text("{}")
    assert "tekken.json has no config with a default_vocab_size" in inspect_checkpoint(str(folder)).warnings[0]
    write_native(folder, PARAMS | {"vocab_size": 128 + 1024})
    assert inspect_checkpoint(str(folder)).warnings == ()
    write_native(folder, PARAMS | {"vocab_size": 128 + 1025})
    assert "may be another model's" in inspect_checkpoint(str(folder)).warnings[0]


def test_a_draft_needs_params_json(tmp_path: Path) -> None:
    write_hf(write_draft(tmp_path))
    assert inspect_draft(str(tmp_path)).kind == "mistral_eagle"
    assert "holds params.json" in draft_problem_of(tmp_path, "mistral", config_format="hf")


def test_a_draft_has_weights_under_its_own_names(tmp_path: Path) -> None:
    folder = write_draft(tmp_path)
    (folder / "consolidated.safetensors").rename(folder / "model.safetensors")
    said = draft_problem_of(folder, "hf", config_format="mistral")
    assert "--speculative-draft-load-format mistral" in said and "model*.safetensors" in said


@pytest.mark.parametrize(("stated", "stored", "used"), [(3, 0, 0), (3, 1, 1), (0, 0, 0), (1, 2, 2), (2, 2, 2)])
def test_the_tensors_of_a_draft_say_which_of_its_layers_are_dense(
    tmp_path: Path, stated: int, stored: int, used: int
) -> None:
    """A draft of two layers may have the params.json of a target with three dense ones before its experts."""
    moe = {
        "num_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": stated, "expert_hidden_dim": 8,
        "num_shared_experts": 1,
    }  # fmt: skip
    parts = ["feed_forward.w1" if index < stored else "experts.0.w1" for index in range(2)]
    names = [f"layers.{index}.{part}.weight" for index, part in enumerate(parts)]
    tensors = DRAFT | {name: torch.zeros(1, dtype=BF16) for name in names}
    spec = inspect_draft(str(write_draft(tmp_path, PARAMS | LATENT | {"n_kv_heads": 4, "moe": moe}, tensors)))
    assert spec.config["first_k_dense_replace"] == used
    assert len(spec.warnings) == (stated != used) and all("dense" in warning for warning in spec.warnings)


def test_without_tensors_that_tell_the_file_counts(tmp_path: Path) -> None:
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 3, "expert_hidden_dim": 8}
    write_draft(tmp_path, PARAMS | LATENT | {"n_kv_heads": 4, "moe": moe})
    assert "first_k_dense_replace is 3; it must be between 0 and 2" in draft_problem_of(tmp_path)


def test_hf(tmp_path: Path) -> None:
    spec = inspect_checkpoint(str(write_hf(tmp_path)))
    assert (spec.layout, spec.dtype, spec.eos_token_ids, spec.tokenizer_kind) == ("hf", "float16", (7,), "hf")
    assert (spec.config["head_dim"], spec.config["rope_parameters"]["rope_theta"]) == (16, 1e5)
    assert spec.tokenizer_path == str(tmp_path)


def test_both_layouts_native_wins_and_flags_choose(tmp_path: Path) -> None:
    write_hf(write_native(tmp_path))
    native = inspect_checkpoint(str(tmp_path))
    assert (native.layout, native.config["rope_parameters"]["rope_theta"]) == ("mistral", 1e6)
    assert native.layout_reason.endswith("config.json and model*.safetensors are there too and are not read")
    assert native.eos_token_ids == (2,)  # config.json is not asked: it need not have been fetched
    for load_format, config_format in (("hf", "auto"), ("auto", "hf")):
        spec = inspect_checkpoint(str(tmp_path), load_format, config_format=config_format)
        assert (spec.layout, spec.config["rope_parameters"]["rope_theta"]) == ("hf", 1e5)
    mixed = inspect_checkpoint(str(tmp_path), "mistral", config_format="hf")
    assert (mixed.layout, mixed.config["rope_parameters"]["rope_theta"]) == ("mistral", 1e5)
    (tmp_path / "consolidated.safetensors").unlink()  # params.json alone is no layout
    assert inspect_checkpoint(str(tmp_path)).layout == "hf"


def test_all_problems_at_once(tmp_path: Path) -> None:
    params: dict[str, Any] = {**PARAMS, "dim": -1, "typo": 1}
    del params["rope_theta"]
    folder = write_native(tmp_path, params)
    (folder / "tekken.json").unlink()
    text = " ".join(problems_of(folder))
    assert all(said in text for said in ("dim is -1", "'typo'", "rope_theta is missing", "no tokenizer"))


def test_what_is_known_beside_problems(tmp_path: Path) -> None:
    folder = write_native(tmp_path)
    (folder / "consolidated.safetensors").write_bytes(b"")
    spec, problems = examine(str(folder), "target")
    assert spec is not None and spec.config["hidden_size"] == 64
    assert problems == ["consolidated.safetensors is truncated: it has 0 bytes and a header of 0"]
    (folder / "params.json").write_text("{}")
    spec, problems = examine(str(folder), "target")
    assert spec is None and len(problems) > 5
    spec, problems = examine(str(write_draft(tmp_path / "draft")), "draft")
    assert type(spec) is DrafterSpec and problems == []


def test_a_missing_tokenizer_is_a_problem_only_where_one_is_needed(tmp_path: Path) -> None:
    (write_native(tmp_path) / "tekken.json").unlink()
    assert "no tokenizer beside the model" in problem_of(tmp_path)
    spec = inspect_checkpoint(str(tmp_path), needs_tokenizer=False)
    assert (spec.tokenizer_kind, spec.tokenizer_path) == ("", "")
    assert len(spec.warnings) == 1 and "no tokenizer beside the model" in spec.warnings[0]


def test_a_model_without_an_end_of_sequence_is_a_warning(tmp_path: Path) -> None:
    spec = inspect_checkpoint(str(write_hf(tmp_path, {**HF_CONFIG, "eos_token_id": None})))
    assert spec.eos_token_ids == ()
    assert any("end-of-sequence" in warning for warning in spec.warnings)


def test_stop_ids_come_from_the_generation_config_first(tmp_path: Path) -> None:
    (write_hf(tmp_path) / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    assert inspect_checkpoint(str(tmp_path)).eos_token_ids == (2, 5)


def test_the_stop_id_of_a_native_checkpoint_is_the_tokenizers(tmp_path: Path) -> None:
    special = [{"rank": 0, "token_str": "<unk>"}, {"rank": 1, "token_str": "</s>"}]
    (write_native(tmp_path) / "tekken.json").write_text(json.dumps({"special_tokens": special}))
    assert inspect_checkpoint(str(tmp_path)).eos_token_ids == (1,)


@pytest.mark.parametrize("value", [128, "2", [], [2, -1], list(range(65)), [[2]], True])
def test_stop_ids_that_cannot_be(tmp_path: Path, value: Any) -> None:
    said = problem_of(write_hf(tmp_path, HF_CONFIG | {"eos_token_id": value}))
    assert said.startswith("config.json: eos_token_id is ") and "vocabulary size 128" in said


def test_the_dtype_is_that_of_most_bytes_and_scales_do_not_count(tmp_path: Path) -> None:
    tensors = {
        "tok_embeddings.weight": torch.zeros(8, dtype=torch.float16),
        "layers.0.attention.wq.weight": torch.zeros(64, dtype=FP8),
        "layers.0.attention.wq.qscale_weight": torch.zeros(100),
        "norm.weight": torch.zeros(3),
    }
    spec = inspect_checkpoint(str(write_native(tmp_path, PARAMS | FP8_STATED, tensors)))
    assert spec.dtype == "float16" and spec.quantization is not None


def test_fp8_tensors_need_a_stated_quantisation(tmp_path: Path) -> None:
    tensors = TARGET | {"layers.0.attention.wq.weight": torch.zeros(8, dtype=FP8)}
    said = problem_of(write_native(tmp_path, PARAMS, tensors))
    assert "layers.0.attention.wq.weight is of dtype F8_E4M3" in said and "states no quantization" in said


def test_a_stated_quantisation_without_fp8_tensors(tmp_path: Path) -> None:
    spec = inspect_checkpoint(str(write_native(tmp_path, PARAMS | FP8_STATED)))
    assert spec.quantization is None and "loaded unquantised" in spec.warnings[0]
    tensors = TARGET | {"layers.0.attention.wq.qscale_weight": torch.zeros(())}
    assert "no tensor is of dtype F8_E4M3" in problem_of(write_native(tmp_path, PARAMS | FP8_STATED, tensors))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.uint8, torch.float8_e5m2, torch.bool])
def test_other_dtypes_are_refused_by_name(tmp_path: Path, dtype: torch.dtype) -> None:
    said = problem_of(write_native(tmp_path, PARAMS, TARGET | {"w": torch.zeros(8, dtype=dtype)}))
    assert "cannot be loaded, for example w" in said


def test_nvfp4_is_recognised(tmp_path: Path) -> None:
    module = "layers.0.experts.0.w1"
    tensors = TARGET | {f"{module}.weight_packed": torch.zeros(8, dtype=torch.uint8)}
    assert f"NVFP4 ({module}.weight_packed)" in problem_of(write_native(tmp_path, PARAMS, tensors))


def test_a_dtype_that_no_weights_can_have(tmp_path: Path) -> None:
    write_native(tmp_path, PARAMS | {"dtype": "int4"})
    assert "dtype is 'int4'" in problem_of(tmp_path, "dummy")
    spec, _ = examine(str(tmp_path), "target", "dummy")
    assert spec is not None and spec.dtype == "bfloat16"  # what goes on with it knows no other


def test_the_newest_sentencepiece_file(tmp_path: Path) -> None:
    (write_native(tmp_path) / "tekken.json").unlink()
    for name in ("tokenizer.model", "tokenizer.model.v3", "tokenizer.model.v11", "tokenizer.model.bak"):
        (tmp_path / name).write_text("")
    spec = inspect_checkpoint(str(tmp_path))
    assert (spec.tokenizer_kind, Path(spec.tokenizer_path).name) == ("sentencepiece", "tokenizer.model.v11")
    assert spec.eos_token_ids == (2,)
    (tmp_path / "tokenizer.model.v11m1").write_text("")  # the same for images
    assert Path(inspect_checkpoint(str(tmp_path)).tokenizer_path).name == "tokenizer.model.v11m1"


def test_a_named_tokenizer(tmp_path: Path) -> None:
    (write_native(tmp_path / "model") / "tekken.json").rename(tmp_path / "tekken.json")
    assert inspect_checkpoint(str(tmp_path / "model"), "auto", str(tmp_path)).tokenizer_kind == "tekken"
    path = str(tmp_path / "tekken.json")
    assert inspect_checkpoint(str(tmp_path / "model"), "auto", path).tokenizer_path == path
    assert "--tokenizer-path" in problem_of(tmp_path / "model", "auto", str(tmp_path / "nothing"))


def test_a_snapshot_in_the_cache_of_the_hub_has_the_name_of_its_repository(tmp_path: Path) -> None:
    folder = write_native(tmp_path / "models--some-org--Some-Model" / "snapshots" / "0123abcd")
    assert inspect_checkpoint(str(folder)).name == "some-org/Some-Model"


def test_the_embedded_model() -> None:
    spec = inspect_checkpoint(None)
    assert (spec.name, spec.path, spec.layout) == ("slipstream-embedded", str(embedded_path()), "mistral")


def test_inspecting_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    code = (
        "import sys; from slipstream.hf_transformers.inspect import inspect_checkpoint;"
        f"inspect_checkpoint({str(write_native(tmp_path))!r});"
        "sys.exit(bool({'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
