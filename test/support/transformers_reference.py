"""The same model in transformers: the independent reference for what a checkpoint computes."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

LAYER_NAMES = {
    "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj", "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj", "feed_forward.w3": "mlp.up_proj",
}  # fmt: skip
TOP_NAMES = {"tok_embeddings.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}


def load_native(folder: Path) -> MistralForCausalLM:
    """The Mistral-native dense checkpoint in `folder` as a transformers model in fp32."""
    params = json.loads((folder / "params.json").read_text())
    config = MistralConfig(
        hidden_size=params["dim"], num_hidden_layers=params["n_layers"], head_dim=params["head_dim"],
        intermediate_size=params["hidden_dim"], num_attention_heads=params["n_heads"],
        num_key_value_heads=params["n_kv_heads"], rms_norm_eps=params["norm_eps"], vocab_size=params["vocab_size"],
        rope_theta=params["rope_theta"], tie_word_embeddings=params["tied_embeddings"], sliding_window=None,
        max_position_embeddings=params["max_position_embeddings"], attn_implementation="eager")  # fmt: skip
    model = MistralForCausalLM(config).eval()
    weights = {}
    for name, tensor in load_file(folder / "consolidated.safetensors").items():
        tensor = tensor.float()
        if name.endswith(("wq.weight", "wk.weight")):
            tensor = halves_from_pairs(tensor, params["head_dim"])
        weights[hf_name(name)] = tensor
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model


def hf_name(name: str) -> str:
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    _, index, *middle, last = name.split(".")
    return f"model.layers.{index}.{LAYER_NAMES['.'.join(middle)]}.{last}"


def halves_from_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of each head from rotary pairs (2i, 2i + 1) to halves (i, i + head_dim / 2)."""
    rows, columns = weight.shape
    return weight.view(rows // head_dim, head_dim // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


@torch.inference_mode()
def likeliest_after(model: MistralForCausalLM, prompt: list[int], answer: list[int]) -> list[int]:
    """The likeliest token after `prompt` and after each further token of `answer`, short of the last.

    `answer` is what greedy decoding gives exactly when this equals it: each token is judged after the same prefix.
    """
    logits = model(torch.tensor([prompt + answer])).logits[0]
    return [int(token_id) for token_id in logits[len(prompt) - 1 : -1].argmax(-1)]
