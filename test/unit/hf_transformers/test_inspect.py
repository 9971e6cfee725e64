"""A folder is what its files hold; what is wrong with it is said at once, with names and values."""

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
from slipstream.hf_transformers.inspect import inspect_checkpoint

PARAMS = {
    "dim": 64,
    "n_layers": 2,
    "head_dim": 16,
    "hidden_dim": 96,
    "n_heads": 4,
    "n_kv_heads": 2,
    "norm_eps": 1e-5,
    "vocab_size": 128,
    "rope_theta": 1e6,
}
HF_CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "sliding_window": None,
    "rope_theta": 1e5,
    "eos_token_id": 7,
    "torch_dtype": "float16",
}


def write_native(folder: Path, params: Any = PARAMS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(params if isinstance(params, str) else json.dumps(params))
    save_file({"a": torch.zeros(8, dtype=torch.bfloat16), "b": torch.zeros(3)}, folder / "consolidated.safetensors")
    (folder / "tekken.json").write_text("{}")
    return folder


def write_hf(folder: Path, config: Any = HF_CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"c": torch.zeros(8, dtype=torch.float16)}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def problems_of(folder: Path, *args: Any) -> list[str]:
    started = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        inspect_checkpoint(str(folder), *args)
    assert time.perf_counter() - started < 5
    assert len(str(caught.value)) < 10_000
    return list(caught.value.problems)


def problem_of(folder: Path, *args: Any) -> str:
    problems = problems_of(folder, *args)
    assert len(problems) == 1, problems
    return problems[0]


def test_native(tmp_path: Path) -> None:
    spec = inspect_checkpoint(str(write_native(tmp_path / "draft-eagle-large-3")))
    assert (spec.layout, spec.architecture, spec.name) == ("mistral", "MistralForCausalLM", "draft-eagle-large-3")
    assert spec.config == {
        "model_type": "mistral",
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "sliding_window": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
    assert (spec.dtype, spec.context_length, spec.vocab_size, spec.eos_token_ids) == ("bfloat16", 32768, 128, (2,))
    assert (spec.tokenizer_kind, spec.tokenizer_path) == ("tekken", str(tmp_path / "draft-eagle-large-3/tekken.json"))
    assert [tensor.name for tensor in spec.tensors] == ["a", "b"]


def test_keys_that_say_what_is_so_anyway(tmp_path: Path) -> None:
    params = PARAMS | {
        "q_lora_rank": None,
        "kv_lora_rank": None,
        "qk_rope_head_dim": None,
        "qk_nope_head_dim": None,
        "v_head_dim": None,
        "llama_4_scaling": None,
        "moe": None,
        "yarn": None,
        "quantization": None,
        "model_type": "transformer",
        "activation": "silu",
        "use_biases": False,
        "causal": True,
        "max_batch_size": 8,
        "sliding_window": 4096,
        "max_position_embeddings": 4096,
        "max_seq_len": 2048,
        "tied_embeddings": True,
    }
    spec = inspect_checkpoint(str(write_native(tmp_path, params)))
    assert (spec.context_length, spec.config["max_position_embeddings"]) == (2048, 4096)
    assert spec.config["tie_word_embeddings"] is True


def test_hf(tmp_path: Path) -> None:
    spec = inspect_checkpoint(str(write_hf(tmp_path)))
    assert (spec.layout, spec.dtype, spec.eos_token_ids, spec.tokenizer_kind) == ("hf", "float16", (7,), "hf")
    assert (spec.config["head_dim"], spec.config["rope_parameters"]["rope_theta"]) == (16, 1e5)
    assert spec.tokenizer_path == str(tmp_path)


@pytest.mark.parametrize("is_llama", [False, True])
def test_absent_hf_keys_have_the_defaults_of_transformers(tmp_path: Path, is_llama: bool) -> None:
    from transformers import LlamaConfig, MistralConfig

    kind, name = (LlamaConfig, "Llama") if is_llama else (MistralConfig, "Mistral")
    given: dict[str, Any] = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
    }
    given |= {} if is_llama else {"sliding_window": None}
    spec = inspect_checkpoint(str(write_hf(tmp_path, given | {"architectures": [f"{name}ForCausalLM"]})))
    reference = kind(**given)
    for key, value in spec.config.items():
        if key == "head_dim":
            assert value == (reference.head_dim or 8)
        elif key == "rope_parameters":
            assert value["rope_theta"] == reference.rope_parameters["rope_theta"]
        else:
            assert value == getattr(reference, key), key


def test_a_mistral_config_without_a_window_has_the_one_of_transformers(tmp_path: Path) -> None:
    config = {key: value for key, value in HF_CONFIG.items() if key != "sliding_window"}
    assert "sliding_window is 4096" in problem_of(write_hf(tmp_path, config))


def test_both_layouts_native_wins_and_the_format_chooses(tmp_path: Path) -> None:
    write_hf(write_native(tmp_path))
    assert inspect_checkpoint(str(tmp_path)).layout == "mistral"
    assert inspect_checkpoint(str(tmp_path)).eos_token_ids == (7,)
    assert inspect_checkpoint(str(tmp_path), "hf").layout == "hf"
    (tmp_path / "consolidated.safetensors").unlink()  # params.json alone is no layout
    assert inspect_checkpoint(str(tmp_path)).layout == "hf"


@pytest.mark.parametrize("missing", ["params.json", "consolidated.safetensors"])
def test_neither_layout(tmp_path: Path, missing: str) -> None:
    (write_native(tmp_path) / missing).unlink()
    text = " ".join(problems_of(tmp_path))
    assert "params.json + consolidated*.safetensors or config.json + model*.safetensors" in text
    assert "files seen: " in text and "tekken.json" in text


def test_the_asked_layout_is_not_there(tmp_path: Path) -> None:
    text = " ".join(problems_of(write_native(tmp_path), "hf"))
    assert "config.json + model*.safetensors" in text and "it needs params.json" not in text


def test_no_folder(tmp_path: Path) -> None:
    assert "No such file" in problem_of(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    assert "takes the folder" in problem_of(tmp_path / "file")


def test_symlink_loops(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be read" in problem_of(tmp_path / "loop")
    folder = write_native(tmp_path / "model")
    (folder / "params.json").unlink()
    (folder / "params.json").symlink_to(folder / "params.json")
    assert "params.json cannot be read" in problem_of(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_layer": 3}, "unknown key 'n_layer'; did you mean 'n_layers'?"),
        ({"moe": {"num_experts": 8}}, "moe: mixture-of-experts"),
        ({"kv_lora_rank": 256}, "kv_lora_rank: multi-head latent"),
        ({"yarn": {"factor": 16}}, "yarn: YaRN"),
        ({"llama_4_scaling": {}}, "llama_4_scaling: position-dependent"),
        ({"vision_encoder": {}}, "vision_encoder: image"),
        ({"quantization": {}}, "quantization: quantised"),
        ({"sliding_window": 1024}, "sliding_window is 1024"),
        ({"sliding_window": [None, 8]}, "sliding_window is [None, 8]"),
        ({"model_type": "mamba"}, "model_type is 'mamba'; only 'transformer'"),
        ({"n_layers": 10**9}, "n_layers is 1000000000; it must be between 1 and 4096"),
        ({"dim": -64}, "dim is -64; it must be between"),
        ({"dim": 0}, "dim is 0"),
        ({"dim": "64"}, "dim is '64'"),
        ({"dim": True}, "dim is True"),
        ({"vocab_size": 10**30}, "vocab_size is 1000"),
        ({"norm_eps": -1}, "norm_eps is -1"),
        ({"rope_theta": None}, "rope_theta is None; it must be a finite number"),
        ({"n_heads": 3}, "n_heads is 3, not a multiple of n_kv_heads, which is 2"),
        ({"head_dim": 15}, "head_dim is 15"),
        ({"tied_embeddings": 1}, "tied_embeddings is 1; it must be true or false"),
        ({"x" * 5000: 1}, "unknown key 'xxx"),
    ],
)
def test_params_that_cannot_work(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in problem_of(write_native(tmp_path, PARAMS | changes))


def test_all_problems_at_once(tmp_path: Path) -> None:
    params: dict[str, Any] = {**PARAMS, "moe": {}, "dim": -1, "typo": 1}
    del params["rope_theta"]
    folder = write_native(tmp_path, params)
    (folder / "tekken.json").unlink()
    text = " ".join(problems_of(folder))
    assert all(said in text for said in ("moe:", "dim is -1", "'typo'", "rope_theta is missing", "no tokenizer"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "{'a': 1}",
        "[" * 500_000,
        "\x00",
        "{" + " " * 2_000_000 + "}",
        json.dumps({f"key{number}": number for number in range(60_000)}),
        '{"dim": ' + "9" * 100_000 + "}",
    ],
)
def test_params_that_are_no_configuration(tmp_path: Path, text: str) -> None:
    assert "params.json" in problems_of(write_native(tmp_path, text))[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"quantization_config": {}}, "quantised"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_type is 'llama3'"),
        ({"rope_parameters": {"rope_theta": 1e4, "fator": 2}}, "unknown key 'fator'"),
        ({"rope_parameters": 3}, "an object"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"num_hidden_layer": 2}, "did you mean 'num_hidden_layers'?"),
        ({"eos_token_id": 128}, "eos_token_id is 128"),
        ({"eos_token_id": "2"}, "eos_token_id is '2'"),
    ],
)
def test_hf_configs_that_cannot_work(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in problem_of(write_hf(tmp_path, HF_CONFIG | changes))


def test_stop_ids_come_from_the_generation_config_first(tmp_path: Path) -> None:
    (write_hf(tmp_path) / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    assert inspect_checkpoint(str(tmp_path)).eos_token_ids == (2, 5)


def test_quantised_tensors_are_refused_by_name(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(8, dtype=torch.float8_e4m3fn)}, write_native(tmp_path) / "consolidated.safetensors")
    assert "F8_E4M3 are not supported yet, for example w" in problem_of(tmp_path)


def test_dummy_needs_no_weights(tmp_path: Path) -> None:
    (write_native(tmp_path, PARAMS | {"dtype": "float32"}) / "consolidated.safetensors").unlink()
    spec = inspect_checkpoint(str(tmp_path), "dummy")
    assert (spec.layout, spec.dtype, spec.tensors) == ("mistral", "float32", ())


def test_the_newest_sentencepiece_file(tmp_path: Path) -> None:
    (write_native(tmp_path) / "tekken.json").unlink()
    for name in ("tokenizer.model", "tokenizer.model.v3", "tokenizer.model.v11", "tokenizer.model.bak"):
        (tmp_path / name).write_text("")
    spec = inspect_checkpoint(str(tmp_path))
    assert (spec.tokenizer_kind, Path(spec.tokenizer_path).name) == ("sentencepiece", "tokenizer.model.v11")


def test_a_named_tokenizer(tmp_path: Path) -> None:
    (write_native(tmp_path / "model") / "tekken.json").rename(tmp_path / "tekken.json")
    assert inspect_checkpoint(str(tmp_path / "model"), "auto", str(tmp_path)).tokenizer_kind == "tekken"
    path = str(tmp_path / "tekken.json")
    assert inspect_checkpoint(str(tmp_path / "model"), "auto", path).tokenizer_path == path
    assert "--tokenizer-path" in problem_of(tmp_path / "model", "auto", str(tmp_path / "nothing"))
    assert inspect_checkpoint(str(tmp_path / "model"), needs_tokenizer=False).tokenizer_kind == ""


def test_the_embedded_folder_lies_in_the_package() -> None:
    assert embedded_path().is_dir()


def test_inspecting_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    code = (
        "import sys; from slipstream.hf_transformers.inspect import inspect_checkpoint;"
        f"inspect_checkpoint({str(write_native(tmp_path))!r});"
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
