"""Tiny Mistral EAGLE drafts in Mistral's own layout, made for a target's params.json."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from support.fp8 import is_linear, quantise_checkpoint
from support.moe_checkpoints import write_params

Params = dict[str, Any]
STATIC_FP8 = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
_NOT_OF_A_DRAFT = ("moe", "vision_encoder", "multimodal", "quantization", "quantization_config")


def draft_params(target: Params, num_layers: int, *, experts: bool = False, fp8: bool = False) -> Params:
    """params.json of a draft: its target's, but for the layers and how weights are stored."""
    params = {key: value for key, value in target.items() if key not in _NOT_OF_A_DRAFT} | {"n_layers": num_layers}
    if experts:
        params["moe"] = target["moe"] | {"first_k_dense_replace": 0}
    return params | ({"quantization": STATIC_FP8} if fp8 else {})


def write_draft(
    folder: Path,
    target_params: Params,
    *,
    num_layers: int = 2,
    experts: bool = False,
    fp8: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """A random draft for the target that params.json `target_params` describes: GQA, or MLA where that has a
    kv_lora_rank, then with `experts` in every layer if asked for.

    `fp8`: matrices in e4m3 with one scale each and static activation scales. `changes` go into params.json.
    Hardly any of its drafts is accepted; see write_copying_draft().
    """
    params = draft_params(target_params, num_layers, experts=experts, fp8=fp8) | changes
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in draft_shapes(params):
        mean, spread = (1.0, 0.3) if len(shape) == 1 else (0.0, 0.15)
        tensors[name] = (mean + spread * torch.randn(shape, generator=generator)).to(dtype)
    return write_params(folder, params, quantise_static(tensors) if fp8 else tensors)


def write_copying_draft(folder: Path, target: Path, *, noise: float = 0.0, seed: int = 0) -> Path:
    """A draft that is right often, for the native checkpoint `target`: all layers of the target and its final norm
    behind an eagle_linear that passes the embedding on. It computes what the target would for a text without its
    first token: of tiny random targets with 97 tokens it guesses about every other token.

    `noise` is added to every matrix, relative to its spread: with 0.1 about a third of its drafts are right, with 1
    hardly any. Hidden states have no part in them without noise.
    """
    params = json.loads((target / "params.json").read_text())
    stored = load_file(target / "consolidated.safetensors")
    own = {name: tensor for name, tensor in stored.items() if name.startswith(("layers.", "norm."))}
    dim = params["dim"]
    own["eagle_linear.weight"] = torch.cat((torch.eye(dim), torch.zeros(dim, dim)), 1).to(own["norm.weight"].dtype)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in own.items():
        if tensor.dim() == 2 and noise:
            added = torch.randn(tensor.shape, generator=generator) * (noise * tensor.float().std())
            own[name] = (tensor.float() + added).to(tensor.dtype)
    removed = ("vision_encoder", "multimodal")
    return write_params(folder, {key: value for key, value in params.items() if key not in removed}, own)


def draft_shapes(params: Params) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of a draft by its name in the file."""
    dim, moe = params["dim"], params.get("moe")
    yield "eagle_linear.weight", (dim, 2 * dim)
    yield "norm.weight", (dim,)
    for index in range(params["n_layers"]):
        layer = f"layers.{index}."
        yield f"{layer}attention_norm.weight", (dim,)
        yield f"{layer}ffn_norm.weight", (dim,)
        attention = _latent_shapes(params) if params.get("kv_lora_rank") else _grouped_shapes(params)
        yield from ((f"{layer}attention.{name}.weight", shape) for name, shape in attention)
        if moe is None:
            yield from _swiglu_shapes(f"{layer}feed_forward.", dim, params["hidden_dim"])
            continue
        inner = moe["expert_hidden_dim"]
        yield f"{layer}gate.weight", (moe["num_experts"], dim)
        for expert in range(moe["num_experts"]):
            yield from _swiglu_shapes(f"{layer}experts.{expert}.", dim, inner)
        if shared := moe.get("num_shared_experts"):
            yield from _swiglu_shapes(f"{layer}shared_experts.", dim, inner * shared)


def quantise_static(tensors: dict[str, Tensor], is_quantised: Callable[[str], bool] = is_linear) -> dict[str, Tensor]:
    """Matrices in e4m3 with one weight scale and one input scale, another for each matrix."""
    stored, _ = quantise_checkpoint(tensors, is_quantised, input_scale=input_scale_of)
    return stored


def input_scale_of(name: str) -> float:
    """Inputs up to 4 or more stay below 448 of it."""
    return 0.01 + 0.0001 * (sum(map(ord, name)) % 100)


def _grouped_shapes(params: Params) -> Iterator[tuple[str, tuple[int, ...]]]:
    dim, size = params["dim"], params["head_dim"]
    yield "wq", (params["n_heads"] * size, dim)
    yield "wk", (params["n_kv_heads"] * size, dim)
    yield "wv", (params["n_kv_heads"] * size, dim)
    yield "wo", (dim, params["n_heads"] * size)


def _latent_shapes(params: Params) -> Iterator[tuple[str, tuple[int, ...]]]:
    dim, heads, q_rank, kv_rank = (params[key] for key in ("dim", "n_heads", "q_lora_rank", "kv_lora_rank"))
    nope, rope, value = (params[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    if q_rank is None:
        yield "wq", (heads * (nope + rope), dim)
    else:
        yield "wq_a", (q_rank, dim)
        yield "q_a_norm", (q_rank,)
        yield "wq_b", (heads * (nope + rope), q_rank)
    yield "wkv_a_with_mqa", (kv_rank + rope, dim)
    yield "kv_a_norm", (kv_rank,)
    yield "wkv_b", (heads * (nope + value), kv_rank)
    yield "wo", (dim, heads * value)


def _swiglu_shapes(prefix: str, dim: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}w1.weight", (inner, dim)
    yield f"{prefix}w2.weight", (dim, inner)
    yield f"{prefix}w3.weight", (inner, dim)
