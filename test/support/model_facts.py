"""What resolving options needs to know of a checkpoint, without one."""

from dataclasses import dataclass

from slipstream.config.images import ImageFormat


@dataclass(frozen=True)
class Model:
    path: str = "/models/small"
    name: str = "small"
    layout: str = "mistral"
    dtype: str = "bfloat16"
    context_length: int = 2048
    vocab_size: int = 4096
    eos_token_ids: tuple[int, ...] = (2,)
    tokenizer_kind: str = "tekken"
    tokenizer_path: str = "/models/small/tekken.json"
    images: ImageFormat | None = None
