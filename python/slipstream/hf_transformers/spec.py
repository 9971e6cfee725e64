"""What a checkpoint folder is, as plain data."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as its safetensors header states it."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # as in the header: "BF16", "F32", ...
    file: str  # file name inside the folder


@dataclass(frozen=True)
class ModelSpec:
    """Everything the processes need to know of a target checkpoint. Pure data: nothing here is loaded."""

    path: str
    name: str  # what the API calls it by default
    layout: str  # "mistral" (params.json) | "hf" (config.json)
    architecture: str  # key of models/: the transformers class, e.g. "MistralForCausalLM"
    config: dict[str, Any]  # the keys that the transformers config class takes
    dtype: str  # of most tensors: "bfloat16" | "float16" | "float32"
    vocab_size: int
    context_length: int
    eos_token_ids: tuple[int, ...]
    tokenizer_kind: str  # "tekken" | "sentencepiece" | "hf"
    tokenizer_path: str  # the file, or for "hf" the folder
    tensors: tuple[TensorInfo, ...]
