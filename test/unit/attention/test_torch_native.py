"""Paged attention against softmax(q k^T) v in float64, one row and one head at a time."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from slipstream.attention.base import Layout
from slipstream.attention.gather import GatherPlanner, group_by_length
from slipstream.attention.layer import AttentionLayer
from slipstream.attention.registry import ATTENTION_BACKENDS
from slipstream.attention.torch_native import TorchNativeAttention

PAGE_SIZE = 4
LAYER = AttentionLayer(num_heads=6, num_kv_heads=2, head_dim=8, scale=0.3)
LATENT = AttentionLayer(num_heads=3, num_kv_heads=1, head_dim=10, scale=0.2, latent_dim=6)
LAYERS = [
    LAYER,
    replace(LAYER, window=5),
    replace(LAYER, window=1),
    AttentionLayer(num_heads=4, num_kv_heads=4, head_dim=16, scale=0.1, window=9),
    LATENT,
    replace(LATENT, window=5),
]


def random_step(
    lens: list[int], num_rows: list[int], dtype: torch.dtype, seed: int = 0, layers: Sequence[AttentionLayer] = (LAYER,)
) -> tuple[TorchNativeAttention, list[Tensor], Layout, list[list[int]]]:
    """A backend whose caches hold random values, and a layout over shuffled pages. Page 0 holds NaN: a trap."""
    generator = torch.Generator().manual_seed(seed)
    num_pages = [-(-length // PAGE_SIZE) for length in lens]
    pages = (torch.randperm(sum(num_pages), generator=generator) + 1).tolist()
    tables = [[pages.pop() for _ in range(count)] for count in num_pages]
    shapes = [(sum(num_pages) + 1, PAGE_SIZE, *layer.cache_shape) for layer in layers]
    caches = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    for cache in caches:
        cache[0] = float("nan")
        for table, length in zip(tables, lens, strict=True):
            if length % PAGE_SIZE:
                cache[table[-1], length % PAGE_SIZE :] = float("nan")  # beyond the request's last token
    width = max(num_pages)
    kv_rows = [
        table[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE
        for table, length, rows in zip(tables, lens, num_rows, strict=True)
        for position in range(length - rows, length)
    ]
    layout = Layout(
        num_decode=sum(rows == 1 for rows in num_rows),
        num_rows=tuple(num_rows),
        kv_lens=torch.tensor(lens),
        kv_lens_cpu=tuple(lens),
        kv_rows=torch.tensor(kv_rows),
        page_tables=torch.tensor([table + [0] * (width - len(table)) for table in tables], dtype=torch.int32),
    )
    return TorchNativeAttention(layers, caches), caches, layout, tables


def random_rows(layer: AttentionLayer, num_rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    q, k, v = (
        torch.randn(num_rows, heads, layer.head_dim).to(dtype)
        for heads in (layer.num_heads, layer.num_kv_heads, layer.num_kv_heads)
    )
    return q, k, None if layer.latent_dim else v


def expected_output(
    cache: Tensor, layout: Layout, tables: list[list[int]], q: Tensor, layer: AttentionLayer = LAYER
) -> Tensor:
    out = torch.zeros(*q.shape[:2], layer.value_dim, dtype=torch.float64)
    row = 0
    for table, length, num_rows in zip(tables, layout.kv_lens_cpu, layout.num_rows, strict=True):
        for position in range(length - num_rows, length):
            first = max(position - layer.window + 1, 0) if layer.window else 0
            kv = torch.stack(
                [cache[table[at // PAGE_SIZE], at % PAGE_SIZE] for at in range(first, position + 1)]
            ).double()
            for head in range(layer.num_heads):
                kv_head = head // (layer.num_heads // layer.num_kv_heads)
                k, v = kv[:, 0, kv_head], kv[:, 0 if layer.latent_dim else 1, kv_head, : layer.value_dim]
                out[row, head] = (k @ q[row, head].double() * layer.scale).softmax(0) @ v
            row += 1
    return out.flatten(1)


STEPS: list[tuple[list[int], list[int]]] = [
    ([1], [1]),
    ([9], [1]),
    ([9, 9], [1, 1]),
    ([9, 1, 30, 4], [1, 1, 1, 1]),
    ([7], [7]),
    ([11], [3]),
    ([13, 2, 8, 5, 19], [1, 1, 8, 3, 6]),
    ([3, 8], [3, 5]),
    ([40, 5, 33, 31], [1, 1, 33, 20]),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("lens", "num_rows"), STEPS, ids=str)
@pytest.mark.parametrize(("mask_elements", "window_rows"), [(2**23, 256), (2**23, 6), (40, 6)])
def test_against_the_definition(
    dtype: torch.dtype,
    lens: list[int],
    num_rows: list[int],
    mask_elements: int,
    window_rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All kinds of layers side by side in one model: each by its own heads, window and cache."""
    monkeypatch.setattr("slipstream.attention.gather._MAX_MASK_ELEMENTS", mask_elements)
    monkeypatch.setattr("slipstream.attention.gather._MIN_WINDOW_ROWS", window_rows)
    backend, caches, layout, tables = random_step(lens, num_rows, dtype, layers=LAYERS)
    backend.plan(layout)
    for index, (layer, cache) in enumerate(zip(LAYERS, caches, strict=True)):
        q, k, v = random_rows(layer, sum(num_rows), dtype)
        out = backend.run(index, q, k, v)
        written = cache.view(-1, *layer.cache_shape)[layout.kv_rows]
        assert torch.equal(written, k.unsqueeze(1) if v is None else torch.stack((k, v), 1))
        expected = expected_output(cache, layout, tables, q, layer)
        assert out.shape == expected.shape and out.dtype == dtype
        assert float((out.double() - expected).abs().max()) < (1e-5 if dtype == torch.float32 else 0.04)


@pytest.mark.parametrize("window", [None, 2, 16, 100])
def test_masks_stay_small(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slipstream.attention.gather._MAX_MASK_ELEMENTS", 500)
    monkeypatch.setattr("slipstream.attention.gather._MIN_WINDOW_ROWS", 4)
    _, _, layout, _ = random_step([120], [90], torch.float32)
    chunks = GatherPlanner(PAGE_SIZE, torch.float32, torch.device("cpu")).plan(layout, window, one_row_each=True).chunks
    assert [block.begin for block in chunks] == [0, *(block.end for block in chunks[:-1])]
    assert chunks[-1].end == 90
    assert all(block.mask is not None and block.mask.numel() <= 500 for block in chunks)
    if window is not None:
        assert all(len(block.gather) <= block.end - block.begin + window - 1 for block in chunks)


def test_decoding_in_a_window_reads_the_window_only() -> None:
    """Rows before the window may hold anything, even NaN."""
    window = replace(LAYER, window=5)
    backend, caches, layout, tables = random_step([29, 12, 6], [1, 1, 1], torch.float32, layers=[window])
    expected_cache = caches[0].clone()
    for table, length in zip(tables, [29, 12, 6], strict=True):
        for position in range(length - 5):
            caches[0][table[position // PAGE_SIZE], position % PAGE_SIZE] = float("nan")
    q, k, v = random_rows(window, 3, torch.float32)
    backend.plan(layout)
    out = backend.run(0, q, k, v)
    expected_cache.view(-1, 2, 2, 8)[layout.kv_rows] = torch.stack((k, v), 1) if v is not None else k
    expected = expected_output(expected_cache, layout, tables, q, window)
    assert float((out.double() - expected).abs().max()) < 1e-5


def test_requests_of_very_different_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slipstream.attention.gather._FREE_PADDING", 0)
    lens = [5, 60, 3, 7, 57, 12]
    assert len(group_by_length(lens)) == 3
    backend, (cache,), layout, tables = random_step([*lens, 6], [1] * 6 + [4], torch.float32)
    q, k, v = (torch.randn(10, heads, 8) for heads in (6, 2, 2))
    backend.plan(layout)
    out = backend.run(0, q, k, v)
    assert float((out.double() - expected_output(cache, layout, tables, q)).abs().max()) < 1e-5


def test_a_nan_stays_in_its_own_request() -> None:
    backend, (cache,), layout, tables = random_step([9, 21, 4], [1, 1, 1], torch.float32)
    cache[tables[0][0]] = float("nan")
    backend.plan(layout)
    out = backend.run(0, torch.randn(3, 6, 8), torch.randn(3, 2, 8), torch.randn(3, 2, 8))
    assert [bool(row.isfinite().all()) for row in out] == [False, True, True]


def test_a_plan_lasts_until_the_next_one() -> None:
    backend, _, layout, _ = random_step([9, 4], [1, 1], torch.float32)
    q, k, v = torch.randn(2, 6, 8), torch.randn(2, 2, 8), torch.randn(2, 2, 8)
    backend.plan(layout)
    assert torch.equal(backend.run(0, q, k, v), backend.run(0, q, k, v))


def test_it_is_registered_and_supports_every_layer() -> None:
    backend = ATTENTION_BACKENDS.get("torch_native")
    assert backend is TorchNativeAttention
    assert backend.supports(LAYERS, torch.float32, torch.device("cpu")) is None
