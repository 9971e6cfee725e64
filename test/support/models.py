"""A model loaded from a checkpoint folder, and its logits for rows that are laid out by hand."""

from pathlib import Path

import torch
from torch import Tensor

from slipstream.attention.base import Layout
from slipstream.attention.torch_native import TorchNativeAttention
from slipstream.hf_transformers.inspect import inspect_checkpoint
from slipstream.models.base import CausalLM, ImageRows
from slipstream.models.registry import MODELS
from slipstream.models.tables import TABLES
from slipstream.weights.load import load_weights
from slipstream.worker.kv_pool import allocate_caches

CPU = torch.device("cpu")
PAGE_SIZE = 4


def load_model(
    folder: Path, dtype: torch.dtype = torch.float32, num_pages: int = 64
) -> tuple[CausalLM, TorchNativeAttention]:
    """The model in `folder`, whichever layout it has, and attention over an empty cache."""
    spec = inspect_checkpoint(str(folder), needs_tokenizer=False)
    tables = TABLES.get(spec.architecture)
    layers = tables.attention_layers(spec.config)
    parameters = load_weights(
        spec.path,
        spec.tensors,
        tables.name_map(spec.config, spec.layout),
        tables.parameter_shapes(spec.config),
        spec.quantization,
        dtype,
        CPU,
        lambda done, total: None,
    )
    attention = TorchNativeAttention(layers, allocate_caches(layers, num_pages, PAGE_SIZE, dtype, CPU))
    model = MODELS.get(spec.architecture)(spec.config, parameters, CPU)
    assert parameters.remaining() == []
    return model, attention


def compute_logits(
    model: CausalLM,
    attention: TorchNativeAttention,
    rows: list[tuple[list[int], int, list[int]]],
    images: ImageRows | None = None,
    kept_rows: list[int] | None = None,
) -> Tensor:
    """Logits of one step, of `kept_rows` only if they are given; each request is (its new tokens, tokens in KV before,
    page table). Requests with one row come first, in the result too.
    """
    rows = sorted(rows, key=lambda row: len(row[0]) != 1)
    positions = torch.cat([torch.arange(start, start + len(tokens)) for tokens, start, _ in rows])
    width = max(len(pages) for _, _, pages in rows)
    kv_lens = [start + len(tokens) for tokens, start, _ in rows]
    attention.plan(
        Layout(
            num_decode=sum(len(tokens) == 1 for tokens, _, _ in rows),
            num_rows=tuple(len(tokens) for tokens, _, _ in rows),
            kv_lens=torch.tensor(kv_lens),
            kv_lens_cpu=tuple(kv_lens),
            page_tables=torch.tensor([pages + [0] * (width - len(pages)) for _, _, pages in rows], dtype=torch.int32),
            kv_rows=torch.tensor(
                [
                    pages[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE
                    for tokens, start, pages in rows
                    for position in range(start, start + len(tokens))
                ]
            ),
        )
    )
    token_ids = torch.tensor([token for tokens, _, _ in rows for token in tokens])
    kept = None if kept_rows is None else torch.tensor(kept_rows)
    return model.compute_logits(model.forward(model.embed(token_ids, images), positions, attention, kept))
