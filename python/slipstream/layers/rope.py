"""Rotary position embedding (Su et al., 2021) in the half-split layout: values i and i + rotary_dim / 2 form a pair."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class RotaryEmbedding:
    """Rotates pair i of a query's or key's values by the angle position * inverse_frequencies[i].

    `rope_parameters` are those of CheckpointSpec.config; `attention_factor` multiplies cosines and sines. There is no
    table over positions: one step needs a few rows of it, and one for a million positions would take 512 MiB.
    """

    __slots__ = ("_factor", "_frequencies")

    def __init__(
        self, rotary_dim: int, rope_parameters: Mapping[str, Any], attention_factor: float, device: torch.device
    ) -> None:
        frequencies = inverse_frequencies(rotary_dim, rope_parameters).to(device, torch.float32)
        # The first half carries the minus sign of its sines, so that a rotation is x * cos + swap_halves(x) * sin.
        self._frequencies = torch.cat((-frequencies, frequencies))
        self._factor = attention_factor

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin), each fp32 [T, 1, rotary_dim], of positions [T] int64; once for all layers of a step."""
        if positions.is_cuda:
            from slipstream.kernels.rotary_tables import rotary_tables  # only where there is a GPU: it needs triton

            return rotary_tables(positions, self._frequencies, self._factor)
        angles = positions.view(-1, 1, 1) * self._frequencies
        cos, sin = angles.cos(), angles.sin_()
        return (cos, sin) if self._factor == 1.0 else (cos.mul_(self._factor), sin.mul_(self._factor))


def inverse_frequencies(rotary_dim: int, rope_parameters: Mapping[str, Any]) -> Tensor:
    """Radians per position of every pair: fp64 [rotary_dim / 2] on the CPU.

    rope_type "default": rope_theta^(-2i / rotary_dim). "yarn" (Peng et al., 2023, section 3.2): fast pairs keep that,
    slow ones have it divided by `factor`, those between are blended; see yarn_range().
    """
    pairs = torch.arange(rotary_dim // 2, dtype=torch.float64)
    frequencies: Tensor = rope_parameters["rope_theta"] ** (-2 * pairs / rotary_dim)
    if rope_parameters["rope_type"] == "default":
        return frequencies
    assert rope_parameters["rope_type"] == "yarn", rope_parameters
    low, high = yarn_range(rotary_dim, rope_parameters)
    slowness = ((pairs - low) / (high - low)).clamp(0, 1)
    blended: Tensor = frequencies * (1 - slowness) + frequencies / rope_parameters["factor"] * slowness
    return blended


def yarn_range(rotary_dim: int, rope_parameters: Mapping[str, Any]) -> tuple[float, float]:
    """The pairs (low, high) between which frequencies are blended.

    A pair turns `beta_fast` times over the original context at `low`, `beta_slow` times at `high`: pair i turns
    original * theta^(-2i / d) / 2 pi times, solved for i, rounded outwards unless `truncate` is false, and kept in
    [0, rotary_dim - 1].

    >>> yarn_range(128, {"rope_theta": 1e6, "original_max_position_embeddings": 4096, "beta_fast": 4, "beta_slow": 1})
    (23, 31)
    """
    turns = rope_parameters["original_max_position_embeddings"] / (2 * math.pi)
    scale = rotary_dim / (2 * math.log(rope_parameters["rope_theta"]))
    low, high = (scale * math.log(turns / rope_parameters[name]) for name in ("beta_fast", "beta_slow"))
    if rope_parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    return low, high + 0.001 if high == low else high


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[T, heads, rotary_dim], turned by tables [T, 1, rotary_dim] whose sines are negated in the first half -> the
    same shape and dtype; computed in fp32.
    """
    wide = x.float()
    return torch.addcmul(wide * cos, wide.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)
