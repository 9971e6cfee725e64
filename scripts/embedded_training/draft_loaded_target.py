"""Any target that Slipstream can load, computed by the very layers that serve it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from embedded_training.draft_target import continued
from slipstream.attention.base import Rotation
from slipstream.attention.layer import AttentionLayer
from slipstream.attention.turn import turn
from slipstream.errors import ConfigError
from slipstream.hf_transformers.inspect import inspect_checkpoint
from slipstream.hf_transformers.spec import ModelSpec
from slipstream.models.registry import MODELS
from slipstream.models.tables import TABLES
from slipstream.weights.parameters import Matrix, Parameters
from slipstream.worker.weight_plan import WeightPlan

_CACHE_SHARE = 0.5  # of the memory that is free
_CPU_CACHE_BYTES = 2**30


class BatchAttention:
    """An AttentionBackend for sequences of one length, without pages: causal over the rows of each call, or, between
    `open_cache` and `close_cache`, over those of the calls before as well.
    """

    def __init__(self, layers: Sequence[AttentionLayer], dtype: torch.dtype, device: torch.device) -> None:
        self._layers, self._dtype, self._device = layers, dtype, device
        self._caches: list[Tensor] = []
        self._batch = self._start = 0

    def open_cache(self, batch: int, length: int) -> None:
        """Room for `length` rows of each sequence."""
        shapes = ((2, batch, spec.num_kv_heads, length, spec.head_dim) for spec in self._layers)
        self._caches = [torch.empty(shape, dtype=self._dtype, device=self._device) for shape in shapes]

    def close_cache(self) -> None:
        self._caches = []

    def begin(self, batch: int, start: int = 0) -> None:
        """The next rows are those of `batch` sequences from position `start` on; of one row each, unless it is 0."""
        self._batch, self._start = batch, start

    def run(self, layer: int, q: Tensor, k: Tensor, v: Tensor | None) -> Tensor:
        """See AttentionBackend.run; rows stand sequence by sequence."""
        assert v is not None, "latent attention, which the trainer refuses"
        spec = self._layers[layer]
        q, k, v = (t.unflatten(0, (self._batch, -1)).transpose(1, 2) for t in (q, k, v))
        rows = q.shape[2]
        if self._caches:
            end, (keys, values) = self._start + rows, self._caches[layer]
            keys[:, :, self._start : end], values[:, :, self._start : end] = k, v
            k, v = keys[:, :, :end], values[:, :, :end]
        if rows == 1:
            out = self._single(q, k, v, spec)
        else:
            mask = None if spec.window is None or spec.window >= rows else _banded(rows, spec.window, q.device)
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=spec.scale, enable_gqa=True
            )
        return out.transpose(1, 2).flatten(2).flatten(0, 1)

    def run_fused(self, layer: int, qkv: Tensor, rotation: Rotation) -> Tensor:
        """See AttentionBackend.run_fused."""
        return self.run(layer, *turn(self._layers[layer], qkv, rotation))

    @staticmethod
    def _single(q: Tensor, k: Tensor, v: Tensor, spec: AttentionLayer) -> Tensor:
        """One row sees all, or its window: so heads of a group can stand where queries of one head would."""
        if spec.window is not None:
            k, v = k[:, :, -spec.window :], v[:, :, -spec.window :]
        grouped = q[:, :, 0].unflatten(1, (spec.num_kv_heads, -1))
        return F.scaled_dot_product_attention(grouped, k, v, scale=spec.scale).flatten(1, 2).unsqueeze(2)


def _banded(rows: int, window: int, device: torch.device) -> Tensor:
    """bool [rows, rows]: True at the columns that a row sees."""
    columns = torch.arange(rows, device=device)
    distances = columns[:, None] - columns
    return (distances >= 0) & (distances < window)


def target_spec(folder: Path) -> ModelSpec:
    """What the checkpoint is; without tokenizer it can still be computed.

    Raises CheckpointError where Slipstream cannot serve it, ConfigError for latent attention.
    """
    spec = inspect_checkpoint(str(folder), "mistral", config_format="mistral", needs_tokenizer=False)
    if "kv_lora_rank" in spec.text_config:
        raise ConfigError(
            f"{folder} has latent attention (kv_lora_rank in its params.json); drafts are trained here only for "
            "targets with grouped-query attention"
        )
    return spec


class LoadedTarget:
    """A dense or expert model with grouped-query attention as a Target."""

    def __init__(self, spec: ModelSpec, compute_dtype: torch.dtype, device: str) -> None:
        """`spec` is that of target_spec()."""
        self.spec = spec
        self.params = json.loads((Path(spec.path) / "params.json").read_text(encoding="utf-8"))
        self._device = torch.device(device)
        parameters = _Observed(WeightPlan(spec).fill(compute_dtype, self._device, 0, lambda done, total: None))
        self._model = MODELS.get(spec.architecture)(spec.config, parameters, self._device)  # type: ignore[arg-type]
        self.embeddings = parameters.seen["embedding"]
        self.head = parameters.seen.get("head", self.embeddings)
        layers = TABLES.get(spec.architecture).attention_layers(spec.config)
        self._attention = BatchAttention(layers, compute_dtype, self._device)
        self._row_bytes = sum(math.prod(layer.cache_shape) for layer in layers) * compute_dtype.itemsize
        self.capturable = "num_local_experts" not in spec.text_config  # how many rows an expert has, the host must know

    def at_once(self, length: int, most: int) -> int:
        """How many rows of `length` tokens can be continued together: up to `most`, at least one."""
        room = _CPU_CACHE_BYTES
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # what an earlier continuation left
            room = int(torch.cuda.mem_get_info(self._device)[0] * _CACHE_SHARE)
        return max(1, min(most, room // (self._row_bytes * length)))

    @torch.no_grad()
    def hidden(self, tokens: Tensor) -> Tensor:
        """See Target."""
        return self._forward(tokens, 0)

    def continue_rows(self, tokens: Tensor, starts: Tensor, temperatures: Tensor, deadline: float = math.inf) -> Tensor:
        """See Target."""
        self._attention.open_cache(*tokens.shape)
        rows = continued(self._forward, self.head, tokens, starts, temperatures, deadline)
        self._attention.close_cache()
        return rows

    def _forward(self, tokens: Tensor, start: int) -> Tensor:
        """Ids [B, n] at positions start.. -> hidden states after the final norm [B, n, dim]."""
        batch, rows = tokens.shape
        positions = torch.arange(start, start + rows, device=tokens.device).repeat(batch)
        self._attention.begin(batch, start)
        x = self._model.embed(tokens.flatten())
        return self._model.forward(x, positions, self._attention).view(batch, rows, -1)  # type: ignore[arg-type]


class _Observed:
    """Parameters of which embedding and head are kept: a training draft reads both as plain matrices."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self.dtype = parameters.dtype
        self.seen: dict[str, Tensor] = {}

    def tensor(self, name: str) -> Tensor:
        found = self._parameters.tensor(name)
        if name in ("embedding", "head"):
            self.seen[name] = found
        return found

    def matrix(self, name: str) -> Matrix:
        return self._parameters.matrix(name)

    def remaining(self) -> list[str]:
        return self._parameters.remaining()
