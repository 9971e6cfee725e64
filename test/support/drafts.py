"""A draft loaded as the worker loads it, and its hidden states for rows that are laid out by hand."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from slipstream.attention.base import Layout
from slipstream.attention.torch_native import TorchNativeAttention
from slipstream.hf_transformers.inspect import inspect_draft
from slipstream.models.drafts.base import DraftModel, DraftOutput
from slipstream.models.drafts.registry import DRAFT_MODELS
from slipstream.models.tables import TABLES
from slipstream.worker.kv_pool import allocate_caches
from slipstream.worker.weight_plan import WeightPlan
from support.models import CPU, PAGE_SIZE


@dataclass(frozen=True)
class Rows:
    """New rows of one request: embeddings and hidden states [n, D] at positions from `start` on, and its pages."""

    x: Tensor
    hidden: Tensor
    start: int
    pages: list[int]

    @property
    def end(self) -> int:
        return self.start + len(self.x)


def load_draft(
    folder: Path, dtype: torch.dtype = torch.float32, num_pages: int = 128
) -> tuple[DraftModel, TorchNativeAttention]:
    """The draft in `folder` with activations in `dtype`, and attention over an empty cache."""
    spec = inspect_draft(str(folder))
    parameters = WeightPlan(spec).fill(dtype, CPU, 0, lambda done, total: None)
    layers = TABLES.get(spec.architecture).attention_layers(spec.config)
    attention = TorchNativeAttention(layers, allocate_caches(layers, num_pages, PAGE_SIZE, dtype, CPU))
    model = DRAFT_MODELS.get(spec.architecture)(spec.config, parameters, CPU)
    assert parameters.remaining() == []
    return model, attention


def run_draft(model: DraftModel, attention: TorchNativeAttention, rows: list[Rows]) -> DraftOutput:
    """One step; requests with one row must come first."""
    width = max(len(request.pages) for request in rows)
    tables = [request.pages + [0] * (width - len(request.pages)) for request in rows]
    kv_rows = [
        request.pages[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE
        for request in rows
        for position in range(request.start, request.end)
    ]
    attention.plan(
        Layout(
            num_decode=sum(len(request.x) == 1 for request in rows),
            num_rows=tuple(len(request.x) for request in rows),
            kv_lens=torch.tensor([request.end for request in rows]),
            kv_lens_cpu=tuple(request.end for request in rows),
            page_tables=torch.tensor(tables, dtype=torch.int32),
            kv_rows=torch.tensor(kv_rows),
        )
    )
    positions = torch.cat([torch.arange(request.start, request.end) for request in rows])
    x, hidden = torch.cat([request.x for request in rows]), torch.cat([request.hidden for request in rows])
    return model.forward(x, hidden, positions, attention)


def run_in_steps(
    folder: Path, x: Tensor, hidden: Tensor, cuts: list[int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """What the head reads, [T, D], for one request whose steps end at `cuts` and at the end."""
    model, attention = load_draft(folder, dtype)
    pages = list(range(3, 4 + len(x) // PAGE_SIZE))[::-1]
    return torch.cat(
        [
            run_draft(model, attention, [Rows(x[start:end], hidden[start:end], start, pages)]).logits_hidden
            for start, end in zip([0, *cuts], [*cuts, len(x)], strict=True)
        ]
    )


def random_rows(num_rows: int, dim: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Embeddings and hidden states, fp32 [num_rows, dim] each, of the size that norms give."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, dim, generator=generator), torch.randn(num_rows, dim, generator=generator)
