"""Write a Mistral-native dense checkpoint in the layout that transformers loads as MistralForCausalLM.

    python scripts/native_to_hf.py NATIVE_FOLDER HF_FOLDER

For comparisons: Slipstream itself serves the native files. The tokenizer is not converted.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

TOP_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
ROTATED = ("attention.wq", "attention.wk")
PARAMS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "head_dim": "head_dim",
    "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "vocab_size": "vocab_size",
    "rope_theta": "rope_theta",
}
OPTIONAL_PARAMS = {"tied_embeddings": False, "max_position_embeddings": 32768}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.weight\Z")


def hf_config(params: Mapping[str, Any]) -> dict[str, Any]:
    """config.json for params.json. Raises SystemExit for a model that is not a plain dense one."""
    missing, extra = PARAMS.keys() - params.keys(), params.keys() - PARAMS.keys() - OPTIONAL_PARAMS.keys()
    if missing or extra:
        sys.exit(f"params.json cannot be converted: missing {sorted(missing)}, not understood {sorted(extra)}")
    values = {name: params[key] for key, name in PARAMS.items()}
    theta = values.pop("rope_theta")
    optional = {**OPTIONAL_PARAMS, **{key: params[key] for key in OPTIONAL_PARAMS if key in params}}
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        **values,
        "max_position_embeddings": optional["max_position_embeddings"],
        "tie_word_embeddings": optional["tied_embeddings"],
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "sliding_window": None,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def hf_tensor(name: str, tensor: Tensor, head_dim: int) -> tuple[str, Tensor]:
    """Name and content of one tensor in the other layout; same shape and dtype."""
    if name in TOP_NAMES:
        return TOP_NAMES[name], tensor
    match = _LAYER.match(name)
    if match is None or match[2] not in LAYER_NAMES:
        sys.exit(f"the tensor {name} has no counterpart in MistralForCausalLM")
    if match[2] in ROTATED:
        tensor = halves_from_pairs(tensor, head_dim)
    return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}.weight", tensor


def halves_from_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of wq or wk, [num_heads * head_dim, columns], for the other convention of rotary embedding.

    Native rows 2i and 2i + 1 of a head rotate together; transformers rotates rows i and i + head_dim / 2 together.
    So the even rows of a head come first, then the odd ones.
    """
    heads = weight.view(-1, head_dim, weight.shape[1])
    return heads[:, [*range(0, head_dim, 2), *range(1, head_dim, 2)]].reshape(weight.shape)


def convert(native: Path, target: Path) -> None:
    """Write config.json and model.safetensors for every consolidated*.safetensors file of `native`."""
    params = json.loads((native / "params.json").read_text())
    tensors: dict[str, Tensor] = {}
    for path in sorted(native.glob("consolidated*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  it is not a dict
                new_name, tensor = hf_tensor(name, file.get_tensor(name), params["head_dim"])
                tensors[new_name] = tensor.contiguous()
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps(hf_config(params), indent=2) + "\n")
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a Mistral-native dense checkpoint in transformers' layout.")
    parser.add_argument("native", type=Path, help="folder with params.json and consolidated*.safetensors")
    parser.add_argument("target", type=Path, help="folder to write")
    options = parser.parse_args()
    convert(options.native, options.target)


if __name__ == "__main__":
    main()
