"""Attention with FlashInfer for large chunks and the Triton kernel for all other rows."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from slipstream.attention.flashinfer_prefill import FlashInferPrefill
from slipstream.attention.large_prefill import MAX_GATHERED_KEYS
from slipstream.attention.layer import AttentionLayer
from slipstream.attention.triton import TritonAttention


class FlashInferAttention(TritonAttention):
    """Implements AttentionBackend and DeviceAttention.

    Only the chunks of a large prefill go to FlashInfer. Its schedules are made on the host from known lengths, while
    decode and verify rows run in CUDA graphs whose lengths only the device knows: these keep the Triton kernel, and
    small chunks, which run in graphs as well, with them.
    """

    def __init__(self, layers: Sequence[AttentionLayer], caches: Sequence[Tensor]) -> None:
        self._prefill = FlashInferPrefill()
        super().__init__(layers, caches, large_prefill=self._prefill)

    @classmethod
    def supports(cls, layers: Sequence[AttentionLayer], dtype: torch.dtype, device: torch.device) -> str | None:
        """See AttentionBackend.supports."""
        return super().supports(layers, dtype, device) or FlashInferPrefill.available(layers, dtype, device)

    @classmethod
    def workspace_bytes(cls, layers: Sequence[AttentionLayer]) -> int:
        """What warm_up() keeps, and keys and values of 16 bits that long prompts gather, of one layer at a time."""
        gathered = max(2 * math.prod(layer.cache_shape) for layer in layers) + 8  # and where each of them lies
        return FlashInferPrefill.workspace_bytes(layers) + MAX_GATHERED_KEYS * gathered

    def warm_up(self) -> None:
        """Compile and load FlashInfer's kernels. Before the server is ready: the first time takes a minute or more."""
        self._prefill.warm_up(self._layers, self._caches[0].dtype, self._caches[0].device)
