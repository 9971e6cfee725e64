"""What a backend may hand large chunks to: a faster kernel over contiguous keys."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from slipstream.attention.layer import AttentionLayer

MAX_GATHERED_KEYS = 2**17  # of all requests with chunks in a step: a bound on the memory that they are gathered into


class LargePrefill(Protocol):
    """Causal attention of the chunks of a step, whose keys and values are gathered, request after request."""

    min_rows: int  # fewer rows of chunks in a step are not worth the gathering

    def plan(self, num_rows: Sequence[int], kv_lens: Sequence[int], device: torch.device) -> None:
        """Prepare what all layers of a step share. Request r's rows are the last num_rows[r] of its kv_lens[r]
        positions.
        """
        ...

    def run(self, layer: AttentionLayer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, heads, head_dim], T the sum of num_rows; k and v [N, kv heads, head_dim], N the sum of kv_lens -> [T,
        heads * head_dim]. Each may be strided, but for its last dimension.
        """
        ...
