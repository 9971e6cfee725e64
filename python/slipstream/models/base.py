"""What the worker asks of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from slipstream.attention.base import AttentionBackend
from slipstream.weights.parameters import Parameters


@dataclass(frozen=True)
class ImageRows:
    """The rows of a step that stand for parts of images, and what takes the place of their token embeddings."""

    rows: Tensor  # int64 [N]
    features: Tensor  # [N, D]

    def put_into(self, embedded: Tensor) -> Tensor:
        """[T, D] -> the same with the image rows replaced; `embedded` may be changed."""
        return embedded.index_copy_(0, self.rows, self.features.to(embedded.dtype))


class ImageEncoder(Protocol):
    """Images to rows of the language model's width."""

    def encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        """uint8 RGB images, each [height, width, 3] with sides that are multiples of patch_size * merge_size -> one
        [merged patches, D] for each image, row by row from the top left.
        """
        ...


class CausalLM(Protocol):
    """A decoder that predicts the next token. `config` is CheckpointSpec.config."""

    image_encoder: ImageEncoder | None  # None: text only
    reads_on_host: bool  # forward() waits for the device in its middle, so that no CUDA graph can hold it

    def __init__(self, config: Mapping[str, Any], parameters: Parameters, device: torch.device) -> None:
        """`parameters` are those of the architecture's ModelTables."""

    def embed(self, token_ids: Tensor, images: ImageRows | None = None) -> Tensor:
        """int64 [T] -> [T, D], parts of images in the place of their tokens. A draft that has none of its own asks
        here, and for logits below.
        """
        ...

    def forward(
        self, x: Tensor, positions: Tensor, attention: AttentionBackend, kept_rows: Tensor | None = None
    ) -> Tensor:
        """Embedded rows [T, D] at `positions`, int64 [T] -> the hidden states [T, D] after the final norm, or those of
        `kept_rows` only, int64 [N] -> [N, D]: the last layer then leaves out what the others do not need, 3 % of the
        work of 32 layers. `attention` is planned for all T rows.
        """
        ...

    def compute_logits(self, hidden: Tensor, *, widen: bool = True) -> Tensor:
        """[rows, D] -> [rows, vocab], fp32 unless `widen` is off: then of the dtype in which they were computed."""
        ...
