"""The facts about a checkpoint as plain data, for `slipstream check`."""

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from slipstream.hf_transformers.dtypes import FP8, HEADER_DTYPES
from slipstream.hf_transformers.safetensors_header import ITEM_BYTES, tensor_bytes
from slipstream.hf_transformers.spec import CheckpointSpec, DrafterSpec, ModelSpec, Quantization
from slipstream.launch.fit import Sizes
from slipstream.models.match import Match

_KEYS = (
    "path", "layout", "layout_reason", "role", "kind", "architecture", "dtype", "quantization", "groups", "parameters",
    "weight_bytes", "kv_bytes_per_token", "context_length", "vocab_size", "files", "config", "origins",
    "shares", "needs",
)  # fmt: skip
_LAYER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Group:
    """Parameters of the same role in all layers."""

    name: str  # of our parameters, layers as *
    dtypes: dict[str, int]  # dtype as in the headers -> number of tensors
    storage: str  # in words
    parameters: int
    weight_bytes: int


def sizes(match: Match) -> Sizes:
    """Bytes of the stored weights and of one token's KV, as the tables of the architecture divide them."""
    sharded = replicated = 0
    for tensor in match.tensors:
        parameter = match.parameter(tensor.name)
        if parameter is None:
            continue
        if match.shapes[parameter].shard == "none":
            replicated += tensor_bytes(tensor)
        else:
            sharded += tensor_bytes(tensor)
    return Sizes(sharded, replicated, match.layers, ITEM_BYTES[HEADER_DTYPES[match.spec.dtype]])


def groups(match: Match) -> list[Group]:
    """What the checkpoint stores for each group of parameters, in the order of the model's parameters."""
    dtypes: dict[str, Counter[str]] = {}
    parameters: Counter[str] = Counter()
    num_bytes: Counter[str] = Counter()
    group_of = {name: _LAYER.sub(".*.", name) for name in match.shapes}
    for tensor in match.tensors:
        parameter = match.parameter(tensor.name)
        if parameter is not None and not match.is_scale(tensor.name):
            name = group_of[parameter]
            dtypes.setdefault(name, Counter())[tensor.dtype] += 1
            parameters[name] += math.prod(tensor.shape)
            num_bytes[name] += tensor_bytes(tensor)
    return [
        Group(name, dict(dtypes[name]), _storage(dtypes[name]), parameters[name], num_bytes[name])
        for name in dict.fromkeys(group_of.values())
        if name in dtypes
    ]


def nothing_known(path: str | None, problems: list[str]) -> dict[str, Any]:
    """The facts about files that could not be read as a checkpoint: the keys of describe() without values."""
    return dict.fromkeys(_KEYS) | {"path": path, "warnings": [], "problems": problems}


def describe(match: Match, problems: list[str]) -> dict[str, Any]:
    """Everything to know about a target or a draft. Sizes in bytes; KV of one token at the dtype of activations."""
    spec, stored = match.spec, groups(match)
    text = spec.text_config
    common = {
        "path": spec.path,
        "layout": spec.layout,
        "layout_reason": spec.layout_reason,
        "role": "draft" if isinstance(spec, DrafterSpec) else "target",
        "kind": spec.kind if isinstance(spec, DrafterSpec) else kind_in_words(spec),
        "architecture": spec.architecture,
        "dtype": spec.dtype,
        "quantization": quantization_in_words(spec.quantization),
        "groups": [vars(group) for group in stored],
        "parameters": sum(group.parameters for group in stored),
        "weight_bytes": sum(tensor_bytes(tensor) for tensor in match.tensors),
        "kv_bytes_per_token": sizes(match).kv_bytes_per_token(1),
        "context_length": spec.context_length,
        "vocab_size": spec.vocab_size,
        "files": sorted({tensor.file for tensor in spec.tensors}),
        "config": spec.config | {"attention_factor": text["attention_factor"], "softmax_scale": text["softmax_scale"]},
        "origins": _origins(spec),
        "warnings": list(spec.warnings),
        "problems": problems,
    }
    return common | (_of_draft(spec) if isinstance(spec, DrafterSpec) else _of_target(spec))


def in_one_line(spec: ModelSpec) -> str:
    """What a start says of its model: architecture, kind, storage, images."""
    stored = spec.dtype if spec.quantization is None else quantization_in_words(spec.quantization)
    images = [f"images up to {spec.images.max_size} pixels"] if spec.images else []
    random = [] if spec.tensors else ["random weights"]
    return "; ".join([f"{spec.architecture}, {kind_in_words(spec)}", stored, *images, *random])


def draft_in_one_line(spec: DrafterSpec) -> str:
    """What a start says of its draft: kind, layers, parameters, storage."""
    stored = spec.dtype if spec.quantization is None else quantization_in_words(spec.quantization)
    num_layers = spec.text_config["num_hidden_layers"]
    parameters = sum(group.parameters for group in groups(Match.of(spec)))
    random = [] if spec.tensors else ["random weights"]
    layers = "1 layer" if num_layers == 1 else f"{num_layers} layers"
    parts = [f"{spec.kind}, {kind_in_words(spec)}", layers, f"{parameters / 1e6:.1f} M parameters", stored, *random]
    return "; ".join(parts)


def _origins(spec: CheckpointSpec) -> dict[str, str]:
    """Of the configuration as described, where the text model's two factors stand at the top as well."""
    prefix = "text_config." if "text_config" in spec.config else ""
    tops = {name: spec.origins[prefix + name] for name in ("attention_factor", "softmax_scale")}
    return {**spec.origins, **tops}


def quantization_in_words(quantization: Quantization | None) -> str:
    """One line.

    >>> quantization_in_words(Quantization("static"))
    'FP8 (e4m3), one scale per matrix or row, static activation scales'
    """
    if quantization is None:
        return "none"
    scales = (
        "one scale per matrix or row" if quantization.block is None else f"one scale per block of {quantization.block}"
    )
    return f"FP8 (e4m3), {scales}, {quantization.activations} activation scales"


def _of_target(spec: CheckpointSpec) -> dict[str, Any]:
    if not isinstance(spec, ModelSpec):
        return {}
    return {
        "tokenizer": f"{spec.tokenizer_kind}: {spec.tokenizer_path}" if spec.tokenizer_kind else None,
        "eos_token_ids": list(spec.eos_token_ids),
        "images": vars(spec.images) if spec.images else None,
        "shares": [],
        "needs": [],
    }


def _of_draft(spec: DrafterSpec) -> dict[str, Any]:
    """What a draft takes from its target, in words."""
    shares = [name for name, owner in (("embedding", spec.embed), ("head", spec.head)) if owner == "target"]
    hidden = {
        "none": [],
        "final_normed": [f"the target's hidden states after its final norm, {spec.text_config['hidden_size']} wide"],
        "aux": [f"the target's hidden states at the input of layer {layer}" for layer in spec.aux_layer_ids],
    }[spec.hidden_source]
    return {"shares": shares, "needs": [*hidden, *(f"the target's {name}" for name in shares)], "norms": spec.norms}


def kind_in_words(spec: CheckpointSpec) -> str:
    """Attention and feed-forward part, and whether images go in."""
    config = spec.text_config
    attention = "MLA" if config.get("kv_lora_rank") else "GQA"
    experts = config.get("num_local_experts") or config.get("n_routed_experts")
    body = f"{attention} with {experts} experts" if experts else f"dense {attention}"
    return f"{body}, with images" if "vision_config" in spec.config else body


def _storage(dtypes: Counter[str]) -> str:
    """
    >>> _storage(Counter({"F8_E4M3": 3})), _storage(Counter({"BF16": 1, "F32": 1}))
    ('FP8 (e4m3)', 'BF16 and F32')
    """
    return " and ".join("FP8 (e4m3)" if dtype == FP8 else dtype for dtype in sorted(dtypes))
