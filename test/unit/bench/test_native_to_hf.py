"""The converted model computes what Mistral's own definition of the native model computes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import embedding, silu
from transformers import MistralForCausalLM

from support.scripts import load_script

PARAMS = {
    "dim": 40, "n_layers": 2, "head_dim": 16, "hidden_dim": 56, "n_heads": 6, "n_kv_heads": 2, "norm_eps": 1e-5,
    "vocab_size": 96, "rope_theta": 100.0,
}  # fmt: skip


def random_weights(tied: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) / math.sqrt(columns)

    dim, heads, kv = PARAMS["dim"], PARAMS["n_heads"] * PARAMS["head_dim"], PARAMS["n_kv_heads"] * PARAMS["head_dim"]
    weights = {"tok_embeddings.weight": matrix(96, dim), "norm.weight": 1 + 0.1 * matrix(1, dim)[0]}
    if not tied:
        weights["output.weight"] = matrix(96, dim)
    for layer in range(PARAMS["n_layers"]):
        shapes = {
            "attention.wq": (heads, dim), "attention.wk": (kv, dim), "attention.wv": (kv, dim),
            "attention.wo": (dim, heads), "feed_forward.w1": (56, dim), "feed_forward.w2": (dim, 56),
            "feed_forward.w3": (56, dim),
        }  # fmt: skip
        for name, (rows, columns) in shapes.items():
            weights[f"layers.{layer}.{name}.weight"] = matrix(rows, columns)
        for name in ("attention_norm", "ffn_norm"):
            weights[f"layers.{layer}.{name}.weight"] = 1 + 0.1 * matrix(1, dim)[0]
    return weights


def native_logits(weights: dict[str, Tensor], token_ids: Tensor) -> Tensor:
    """[T] -> [T, V]: the native model from its definition; neighbours in a head are one complex number that rotates."""
    head_dim, num_tokens = PARAMS["head_dim"], len(token_ids)
    angles = torch.outer(torch.arange(num_tokens), PARAMS["rope_theta"] ** (-torch.arange(0, head_dim, 2) / head_dim))
    turns = torch.polar(torch.ones_like(angles), angles)[:, None]

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + PARAMS["norm_eps"]) * weight

    def rotate(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(num_tokens, -1, head_dim // 2, 2))
        return torch.view_as_real(pairs * turns).reshape(num_tokens, -1, head_dim)

    x = embedding(token_ids, weights["tok_embeddings.weight"])
    future = torch.full((num_tokens, num_tokens), -math.inf).triu(1)
    for layer in range(PARAMS["n_layers"]):

        def weight(name: str, layer: int = layer) -> Tensor:
            return weights[f"layers.{layer}.{name}.weight"]

        y = norm(x, weight("attention_norm"))
        q, k = rotate(y @ weight("attention.wq").T), rotate(y @ weight("attention.wk").T)
        v = (y @ weight("attention.wv").T).reshape(num_tokens, -1, head_dim)
        group = PARAMS["n_heads"] // PARAMS["n_kv_heads"]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("tnh,snh->nts", q, k) / math.sqrt(head_dim) + future
        x = x + torch.einsum("nts,snh->tnh", scores.softmax(-1), v).reshape(num_tokens, -1) @ weight("attention.wo").T
        y = norm(x, weight("ffn_norm"))
        gated = silu(y @ weight("feed_forward.w1").T) * (y @ weight("feed_forward.w3").T)
        x = x + gated @ weight("feed_forward.w2").T
    return norm(x, weights["norm.weight"]) @ weights.get("output.weight", weights["tok_embeddings.weight"]).T


def write_native(folder: Path, weights: dict[str, Tensor], **params: Any) -> None:
    folder.mkdir()
    save_file(weights, folder / "consolidated.safetensors")
    (folder / "params.json").write_text(json.dumps(PARAMS | params))


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_the_native_model(tmp_path: Path, tied: bool) -> None:
    weights = random_weights(tied)
    write_native(tmp_path / "native", weights, tied_embeddings=tied, max_position_embeddings=64)
    load_script("native_to_hf").convert(tmp_path / "native", tmp_path / "hf")
    model, report = MistralForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    token_ids = torch.randint(96, (33,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = model(token_ids[None]).logits[0]
    torch.testing.assert_close(logits, native_logits(weights, token_ids), rtol=1e-4, atol=1e-4)


def test_what_is_not_dense_is_refused(tmp_path: Path) -> None:
    script = load_script("native_to_hf")
    write_native(tmp_path / "native", random_weights(tied=True), moe={"num_experts": 8})
    with pytest.raises(SystemExit, match="moe"):
        script.convert(tmp_path / "native", tmp_path / "hf")
    with pytest.raises(SystemExit, match="qscale_weight"):
        script.hf_tensor("layers.0.attention.wq.qscale_weight", torch.zeros(1), 16)
