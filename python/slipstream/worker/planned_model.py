"""A target or a draft before it is loaded."""

from dataclasses import dataclass

import torch

from slipstream.attention.layer import AttentionLayer
from slipstream.hf_transformers.spec import CheckpointSpec
from slipstream.worker.kv_pool import kv_bytes_per_token
from slipstream.worker.weight_plan import WeightPlan


@dataclass(frozen=True)
class PlannedModel:
    """What it will take."""

    spec: CheckpointSpec
    layers: tuple[AttentionLayer, ...]
    weights: WeightPlan
    dtype: torch.dtype  # of activations and KV

    def weight_bytes(self, device: torch.device) -> int:
        return self.weights.resident_bytes(self.dtype, device)

    @property
    def kv_bytes_per_token(self) -> int:
        return kv_bytes_per_token(self.layers, self.dtype)
