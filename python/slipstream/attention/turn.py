"""Queries and keys turned by their positions, in plain torch: what fused kernels do on the way to the cache."""

from torch import Tensor

from slipstream.attention.base import Rotation
from slipstream.attention.layer import AttentionLayer
from slipstream.layers.rope import rotate


def turn(layer: AttentionLayer, qkv: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [T, heads + 2 * kv heads, head_dim] -> q, k and v, each [T, its heads, head_dim]."""
    num_rotated = layer.num_heads + layer.num_kv_heads
    rotated = rotate(qkv[:, :num_rotated], rotation.cos, rotation.sin)
    q = rotated[:, : layer.num_heads]
    if rotation.query_scale is not None:
        q = (q * rotation.query_scale).to(q.dtype)
    return q, rotated[:, layer.num_heads :], qkv[:, num_rotated:]
