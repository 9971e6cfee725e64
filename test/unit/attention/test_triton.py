"""The Triton backend through layouts: against the definition in float64, and against the torch backend."""

import doctest
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from slipstream.attention import triton as module
from slipstream.attention.base import DeviceRows, Layout, Rotation, Tree
from slipstream.attention.layer import AttentionLayer
from slipstream.attention.paging import make_layout
from slipstream.attention.registry import ATTENTION_BACKENDS
from slipstream.attention.torch_native import TorchNativeAttention
from slipstream.attention.triton import TritonAttention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PAGE_SIZE = 4
WIDTH = 20  # pages of a table
GQA = AttentionLayer(num_heads=4, num_kv_heads=2, head_dim=16, scale=0.3)
LAYERS = [GQA, replace(GQA, window=5), AttentionLayer(num_heads=3, num_kv_heads=3, head_dim=8, scale=0.2, window=40)]


def page_tables(num_slots: int) -> Tensor:
    pages = torch.randperm(num_slots * WIDTH, generator=torch.Generator().manual_seed(0)) + 1
    return pages.view(num_slots, WIDTH).int().to(DEVICE)


def make_caches(num_slots: int, layers: Sequence[AttentionLayer] = LAYERS) -> list[Tensor]:
    """Random values; the sink holds NaN."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(num_slots * WIDTH + 1, PAGE_SIZE, *layer.cache_shape) for layer in layers]
    caches = [torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes]
    for cache in caches:
        cache[0] = float("nan")
    return caches


def random_qkv(layer: AttentionLayer, num_rows: int) -> Tensor:
    """Queries, keys and values as run_fused() takes them."""
    generator = torch.Generator().manual_seed(2)
    heads = layer.num_heads + 2 * layer.num_kv_heads
    return torch.randn(num_rows, heads, layer.head_dim, generator=generator).to(DEVICE)


def split(layer: AttentionLayer, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv.split([layer.num_heads, layer.num_kv_heads, layer.num_kv_heads], 1)
    return q, k, v


def layout_of(starts: Sequence[int], num_rows: Sequence[int], num_decode: int, tree: Tree | None = None) -> Layout:
    slots = range(len(starts))
    return make_layout(page_tables(len(starts)), PAGE_SIZE, slots, starts, num_rows, num_decode, tree)[0]


def run(kind: type[TorchNativeAttention | TritonAttention], layout: Layout) -> tuple[list[Tensor], list[Tensor]]:
    """Every layer's output, and the caches after it."""
    caches = make_caches(len(layout.num_rows))
    backend = kind(LAYERS, caches)
    backend.plan(layout)
    outs = [
        backend.run(index, *split(layer, random_qkv(layer, sum(layout.num_rows)))) for index, layer in enumerate(LAYERS)
    ]
    return outs, caches


def check_against_torch(layout: Layout) -> None:
    (outs, caches), (expected, expected_caches) = run(TritonAttention, layout), run(TorchNativeAttention, layout)
    for out, other in zip(outs, expected, strict=True):
        assert out.shape == other.shape and float((out - other).abs().max()) < 1e-5
    for cache, other in zip(caches, expected_caches, strict=True):
        assert torch.equal(cache[1:], other[1:])


def expected_output(cache: Tensor, layout: Layout, q: Tensor, layer: AttentionLayer) -> Tensor:
    """The definition, one row and one head at a time."""
    rows, out = cache.cpu().double().flatten(0, 1), []
    for table, length, count in zip(layout.page_tables.tolist(), layout.kv_lens.tolist(), layout.num_rows, strict=True):
        line = [table[at // PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE for at in range(length)]
        for position in range(length - count, length):
            low = max(position - layer.window + 1, 0) if layer.window else 0
            kv = rows[line[low : position + 1]]
            for head in range(layer.num_heads):
                k, v = kv[:, :, head // (layer.num_heads // layer.num_kv_heads)].unbind(1)
                query = q[len(out) // layer.num_heads, head].cpu().double()
                out.append((k @ query * layer.scale).softmax(0) @ v)
    return torch.stack(out).view(q.shape[0], -1)


STEPS = [
    ([0], [1], 1),
    ([8, 0, 29, 68], [1, 1, 1, 1], 4),
    ([5, 30, 0], [2, 3, 1], 3),
    ([0], [7], 0),
    ([12, 1, 0, 3], [1, 4, 33, 20], 2),
]


@pytest.mark.parametrize(("starts", "num_rows", "num_decode"), STEPS, ids=str)
def test_against_the_definition(starts: list[int], num_rows: list[int], num_decode: int) -> None:
    """Decode, verify and chunk rows; layers of several windows and head sizes side by side."""
    layout = layout_of(starts, num_rows, num_decode)
    outs, caches = run(TritonAttention, layout)
    for layer, cache, out in zip(LAYERS, caches, outs, strict=True):
        q, k, v = split(layer, random_qkv(layer, sum(num_rows)))
        assert torch.equal(cache.flatten(0, 1)[layout.kv_rows], torch.stack((k, v), 1))
        difference = out.cpu().double() - expected_output(cache, layout, q, layer)
        assert float(difference.abs().max()) < 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_as_torch_does(seed: int) -> None:
    rng = random.Random(seed)
    decode = [(rng.randrange(60), rng.choice([1, 1, 4])) for _ in range(rng.randint(0, 3))]
    chunks = [(rng.randrange(30), rng.randint(1, 30)) for _ in range(rng.randint(1, 2))]
    starts, num_rows = zip(*decode, *chunks, strict=True)
    check_against_torch(layout_of(starts, num_rows, len(decode)))


def random_tree(num_nodes: int, rng: random.Random) -> Tensor:
    """bool [nodes, nodes]: every node's ancestors and itself."""
    visible = torch.eye(num_nodes, dtype=torch.bool)
    for node in range(1, num_nodes):
        visible[node] |= visible[rng.randrange(node)]
    return visible


@pytest.mark.parametrize("num_nodes", [5, 67])
def test_trees_as_torch_does(num_nodes: int) -> None:
    """A tree of which all nodes are rows, the last rows of another, and a chunk."""
    rng = random.Random(num_nodes)
    visible = torch.zeros(2, 5, num_nodes, dtype=torch.bool, device=DEVICE)
    visible[0, :5, :5] = random_tree(5, rng).to(DEVICE)
    visible[1, :3] = random_tree(num_nodes, rng)[-3:].to(DEVICE)
    starts = [9, 6 + num_nodes - 3, 2]
    check_against_torch(layout_of(starts, [5, 3, 6], 2, Tree((9, 6), visible)))


def test_lengths_that_only_the_device_knows() -> None:
    layout = layout_of([8, 20], [2, 1], 2)
    outs, _ = run(TritonAttention, replace(layout, kv_lens_cpu=(30, 31)))
    for out, exact in zip(outs, run(TritonAttention, layout)[0], strict=True):
        assert torch.allclose(out, exact, atol=1e-6)


def rotation_of(num_rows: int, size: int, scaled: bool) -> Rotation:
    angles = torch.arange(num_rows, device=DEVICE)[:, None] * torch.logspace(0, -3, size // 2, device=DEVICE)
    sines = angles.sin()
    tables = torch.cat((angles.cos(), angles.cos()), 1), torch.cat((-sines, sines), 1)
    scale = torch.linspace(1, 2, num_rows, device=DEVICE).view(-1, 1, 1) if scaled else None
    return Rotation(tables[0].unsqueeze(1), tables[1].unsqueeze(1), scale)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", [TorchNativeAttention, TritonAttention])
def test_run_fused_rotates_stores_and_attends(kind: type[TorchNativeAttention | TritonAttention], scaled: bool) -> None:
    """A pair of values is a complex number, which a rotation multiplies with one of length 1."""
    layout = layout_of([8, 3], [2, 5], 1)
    caches = make_caches(2)
    backend = kind(LAYERS, caches)
    backend.plan(layout)
    for index, layer in enumerate(LAYERS):
        rotation = rotation_of(7, layer.head_dim, scaled)
        qkv = random_qkv(layer, 7)
        out = backend.run_fused(index, qkv.clone(), rotation)
        half = layer.head_dim // 2
        turn = torch.complex(rotation.cos[..., :half].double(), rotation.sin[..., half:].double())
        turned = torch.complex(qkv[..., :half].double(), qkv[..., half:].double()) * turn
        q, k, _ = split(layer, torch.cat((turned.real, turned.imag), 2))
        if rotation.query_scale is not None:
            q = q * rotation.query_scale
        written = caches[index].flatten(0, 1)[layout.kv_rows]
        assert float((written[:, 0] - k).abs().max()) < 1e-6
        assert torch.equal(written[:, 1], split(layer, qkv)[2])
        difference = out.cpu().double() - expected_output(caches[index], layout, q, layer)
        assert float(difference.abs().max()) < 1e-5


def test_rows_of_the_device() -> None:
    """Two requests, the dummy slot and an empty block; the same plan serves other lengths."""
    tables = torch.cat((page_tables(3), torch.zeros(1, WIDTH, dtype=torch.int32, device=DEVICE)))
    ints = {"dtype": torch.int32, "device": DEVICE}
    rows = DeviceRows(
        page_tables=tables,
        positions=torch.zeros(8, dtype=torch.int64, device=DEVICE),
        kv_rows=torch.zeros(8, dtype=torch.int64, device=DEVICE),
        block_slots=torch.tensor([2, 0, 3, 3], **ints),
        block_starts=torch.tensor([0, 2, 4, 6], **ints),
        block_sizes=torch.tensor([2, 2, 2, 0], **ints),
        rows_per_block=2,
        max_kv_len=WIDTH * PAGE_SIZE,
    )
    caches = make_caches(3)
    backend = TritonAttention(LAYERS, caches)
    backend.plan_rows(rows)
    for first, second in ((30, 7), (0, 41)):
        layout, positions = make_layout(tables, PAGE_SIZE, [2, 0], [first, second], [2, 2], 2)
        rows.positions[:4], rows.kv_rows[:4] = positions, layout.kv_rows
        for index, layer in enumerate(LAYERS):
            q, k, v = split(layer, random_qkv(layer, 8))
            out = backend.run(index, q, k, v)
            difference = out[:4].cpu().double() - expected_output(caches[index], layout, q[:4], layer)
            assert float(difference.abs().max()) < 1e-5
            assert bool((out[4:6] == 0).all())


class OneByOne:
    """A LargePrefill by the definition; it notes what it was asked for."""

    min_rows = 20

    def __init__(self) -> None:
        self.planned: list[tuple[list[int], list[int]]] = []
        self.num_runs = 0

    def plan(self, num_rows: Sequence[int], kv_lens: Sequence[int], device: torch.device) -> None:
        self.planned.append((list(num_rows), list(kv_lens)))

    def run(self, layer: AttentionLayer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.num_runs += 1
        outs, row, key = [], 0, 0
        for count, length in zip(*self.planned[-1], strict=True):
            keys, values = (
                x[key : key + length].repeat_interleave(layer.num_heads // layer.num_kv_heads, 1) for x in (k, v)
            )
            scores = torch.einsum("mhd,nhd->hmn", q[row : row + count], keys) * layer.scale
            own = torch.arange(length - count, length, device=q.device)
            hidden = torch.arange(length, device=q.device) > own[:, None]
            outs.append(torch.einsum("hmn,nhd->mhd", scores.masked_fill(hidden, float("-inf")).softmax(2), values))
            row, key = row + count, key + length
        return torch.cat(outs).flatten(1)


@pytest.mark.parametrize(
    ("starts", "num_rows", "num_decode", "num_runs"),
    [
        ([9, 20, 0, 5], [1, 3, 16, 18], 2, 2),  # the window of 5 is not for it; that of 40 holds all
        ([0, 3], [18, 9], 0, 2),
        ([0, 30], [18, 30], 0, 1),  # 60 positions, more than the window of 40
        ([4, 0], [2, 19], 1, 0),  # too few rows
        ([4, 8], [12, 12], 2, 0),  # no chunks
    ],
)
def test_large_chunks_go_elsewhere(starts: list[int], num_rows: list[int], num_decode: int, num_runs: int) -> None:
    layout, large = layout_of(starts, num_rows, num_decode), OneByOne()
    backend = TritonAttention(LAYERS, make_caches(len(starts)), large)
    backend.plan(layout)
    expected, _ = run(TorchNativeAttention, layout)
    for index, layer in enumerate(LAYERS):
        out = backend.run(index, *split(layer, random_qkv(layer, sum(num_rows))))
        assert float((out - expected[index]).abs().max()) < 1e-5
    assert large.num_runs == num_runs
    chunks = num_rows[num_decode:], [sum(pair) for pair in zip(starts, num_rows, strict=True)][num_decode:]
    assert large.planned == [chunks] * bool(num_runs)


def test_what_it_cannot_do() -> None:
    supports, device = TritonAttention.supports, DEVICE
    assert supports(LAYERS, torch.bfloat16, device) is None
    assert supports(LAYERS, torch.float64, device) == "takes float32, float16 and bfloat16, not torch.float64"
    assert "CUDA" in str(supports(LAYERS, torch.bfloat16, torch.device("meta")))
    latent = AttentionLayer(num_heads=3, num_kv_heads=1, head_dim=10, scale=0.2, latent_dim=6)
    assert "MLA" in str(supports([GQA, latent], torch.float32, device))
    assert "256 values, not 320" in str(supports([replace(GQA, head_dim=320)], torch.float32, device))
    assert "128 query heads" in str(supports([replace(GQA, num_heads=512)], torch.float32, device))


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0


def test_it_is_loaded_when_it_is_asked_for() -> None:
    code = "import sys, slipstream.attention.registry as r; assert 'triton' in r.ATTENTION_BACKENDS.names()"
    code += "; sys.exit('slipstream.kernels.paged_attention' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert ATTENTION_BACKENDS.get("triton") is TritonAttention
