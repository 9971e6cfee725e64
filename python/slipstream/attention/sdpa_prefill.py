"""Causal attention of large prefill chunks with torch's scaled_dot_product_attention: cuDNN's kernel on a GPU."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from slipstream.attention.gather import rows_per_block
from slipstream.attention.layer import AttentionLayer
from slipstream.attention.masks import causal_mask

# In this order; not MATH, which would store all scores.
_GPU_KERNELS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
_GPU_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class _Span:
    """One request: rows [begin, end) of the step, keys [first_key, last_key)."""

    begin: int
    end: int
    first_key: int
    last_key: int


class SdpaPrefill:
    """Implements LargePrefill, with a window too: one call for each request, with a window for each block of rows.

    cuDNN prepares each new shape on the host, so the first chunk of a length takes longer.
    """

    def __init__(self, min_rows: int = 512) -> None:
        self.min_rows = min_rows
        self._spans: list[_Span] = []

    @classmethod
    def available(cls, layers: Sequence[AttentionLayer], dtype: torch.dtype, device: torch.device) -> str | None:
        """None, or one clause that says what is missing."""
        if any(layer.latent_dim for layer in layers):
            return "has no latent attention (MLA)"
        if device.type == "cuda" and dtype not in _GPU_DTYPES:
            return f"takes bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
        return None

    def plan(self, num_rows: Sequence[int], kv_lens: Sequence[int], device: torch.device) -> None:
        """Take the step's requests: num_rows[r] rows at the end of kv_lens[r] keys. See LargePrefill.plan."""
        self._spans = []
        row = key = 0
        for rows, keys in zip(num_rows, kv_lens, strict=True):
            self._spans.append(_Span(row, row + rows, key, key + keys))
            row, key = row + rows, key + keys

    def run(self, layer: AttentionLayer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, heads, head_dim], k and v [N, kv heads, head_dim] -> [T, heads * head_dim]. See LargePrefill.run."""
        with _kernels(q.device):
            if len(self._spans) == 1:
                return _attend(layer, q, k, v)
            out = torch.empty(q.shape[0], q.shape[1] * v.shape[2], dtype=q.dtype, device=q.device)
            for span in self._spans:
                keys = slice(span.first_key, span.last_key)
                out[span.begin : span.end] = _attend(layer, q[span.begin : span.end], k[keys], v[keys])
        return out


def _kernels(device: torch.device) -> AbstractContextManager[object]:
    return sdpa_kernel(_GPU_KERNELS, set_priority=True) if device.type == "cuda" else nullcontext()


def _attend(layer: AttentionLayer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One request: q [n, heads, head_dim] at the end of k and v [L, kv heads, head_dim] -> [n, heads * head_dim]."""
    num_rows, num_keys = q.shape[0], k.shape[0]
    window = layer.window or num_keys
    if window < num_keys or (num_rows < num_keys and q.device.type != "cuda"):
        return _attend_in_blocks(layer, q, k, v, window)
    # With a bias of this type torch calls the flash kernel, whose causal mask is aligned to the end; on a CPU it would
    # make one mask of all rows and keys.
    bias = causal_lower_right(num_rows, num_keys) if num_rows < num_keys else None
    queries, keys, values = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=bias, is_causal=bias is None, scale=layer.scale, enable_gqa=True
    )
    return out[0].transpose(0, 1).reshape(num_rows, -1)


def _attend_in_blocks(layer: AttentionLayer, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """The same with a mask, for as many rows at once as keep the mask small; a block reads only what its rows see.

    KV heads stand in the batch dimension and query heads share keys through a stride of 0: the kernel that takes a
    mask on a GPU knows no groups of heads.
    """
    num_rows, num_keys = q.shape[0], k.shape[0]
    group_size = layer.num_heads // layer.num_kv_heads
    queries = q.reshape(num_rows, layer.num_kv_heads, group_size, -1).permute(1, 2, 0, 3)
    keys, values = (x.transpose(0, 1).unsqueeze(1).expand(-1, group_size, -1, -1) for x in (k, v))
    positions = torch.arange(num_keys, device=q.device).unsqueeze(0)
    own = positions[:, num_keys - num_rows :]
    out = torch.empty(num_rows, layer.num_kv_heads, group_size, v.shape[2], dtype=q.dtype, device=q.device)
    step = rows_per_block(num_keys, window)
    for first in range(0, num_rows, step):
        last = min(first + step, num_rows)
        low, high = max(num_keys - num_rows + first - window + 1, 0), num_keys - num_rows + last
        mask = causal_mask(positions[:, low:high], own[:, first:last], window)
        attended = F.scaled_dot_product_attention(
            queries[:, :, first:last], keys[:, :, low:high], values[:, :, low:high], attn_mask=mask, scale=layer.scale
        )
        out[first:last] = attended.permute(2, 0, 1, 3)
    return out.flatten(1)
