"""Decode requests with several rows against softmax(q k^T) v in float64 over the positions that each row may see.

What a row sees is written out from the parents of its tree, one position at a time.
"""

import doctest
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pytest
import torch
from torch import Tensor

from slipstream.attention import gather, spans
from slipstream.attention.base import Layout, Tree
from slipstream.attention.gather import GatherPlanner
from slipstream.attention.layer import AttentionLayer
from slipstream.attention.paging import make_layout
from slipstream.attention.spans import has_one_row_each
from slipstream.attention.torch_native import TorchNativeAttention

GQA = AttentionLayer(num_heads=6, num_kv_heads=2, head_dim=8, scale=0.3)
LATENT = AttentionLayer(num_heads=3, num_kv_heads=1, head_dim=10, scale=0.2, latent_dim=6)
LAYERS = [
    GQA,
    replace(GQA, window=2),
    replace(GQA, window=1),
    AttentionLayer(num_heads=4, num_kv_heads=4, head_dim=16, scale=0.1, window=7),
    LATENT,
    replace(LATENT, window=4),
]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}


@dataclass(frozen=True)
class Request:
    """`prefix` positions, then a tree: the parent of node i is parents[i], -1 for a root. Its last `num_rows` are rows.

    A chunk is a chain whose rows are all that it has beyond its prefix.
    """

    prefix: int
    parents: tuple[int, ...]
    num_rows: int
    is_chunk: bool = False

    @property
    def kv_len(self) -> int:
        return self.prefix + len(self.parents)

    def path(self, node: int) -> list[int]:
        """A node's ancestors and itself, from the root on."""
        return [*self.path(self.parents[node]), node] if node >= 0 else []

    def seen(self, row: int, window: int | None) -> list[int]:
        """Cache positions that a row sees."""
        nodes = self.path(len(self.parents) - self.num_rows + row)
        line = [*range(self.prefix), *(self.prefix + node for node in nodes)]
        return line if window is None else line[-window:]

    def visible(self) -> list[set[int]]:
        """The nodes that each row sees, as a Tree says it."""
        return [set(self.path(len(self.parents) - self.num_rows + row)) for row in range(self.num_rows)]


def chain(prefix: int, num_rows: int, is_chunk: bool = False) -> Request:
    return Request(prefix, tuple(range(-1, num_rows - 1)), num_rows, is_chunk)


def tree(prefix: int, num_nodes: int, rng: random.Random) -> Request:
    """A tree below one root, all of it rows."""
    return Request(prefix, (-1, *(rng.randrange(node) for node in range(1, num_nodes))), num_nodes)


def last_level(prefix: int, topk: int, depth: int, rng: random.Random) -> Request:
    """Drafting: every level has topk nodes, each below any of the level before; only the last level's are rows."""
    levels = [[-1] * topk] + [[rng.randrange(topk) + level * topk for _ in range(topk)] for level in range(depth - 1)]
    return Request(prefix, tuple(parent for level in levels for parent in level), topk)


class Step:
    """Requests on shuffled pages; whatever no request may read is NaN."""

    def __init__(self, requests: Sequence[Request], page_size: int, dtype: torch.dtype, seed: int = 0) -> None:
        rng = random.Random(seed)
        self.requests, self.page_size, self.dtype = requests, page_size, dtype
        counts = [-(-request.kv_len // page_size) for request in requests]
        free = list(range(1, sum(counts) + 1))
        rng.shuffle(free)
        self.pages = [[free.pop() for _ in range(count)] for count in counts]
        generator = torch.Generator().manual_seed(seed)
        shapes = [(sum(counts) + 1, page_size, *layer.cache_shape) for layer in LAYERS]
        self.caches = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        own = {row for index, request in enumerate(requests) for row in self.rows(index, range(request.kv_len))}
        for cache in self.caches:
            trap = [row for row in range(cache.shape[0] * page_size) if row not in own]
            cache.view(-1, *cache.shape[2:])[trap] = float("nan")
        self.inputs = [self._inputs(layer, generator) for layer in LAYERS]

    def rows(self, request: int, positions: Sequence[int]) -> list[int]:
        """Cache rows of a request's positions."""
        return [self.pages[request][at // self.page_size] * self.page_size + at % self.page_size for at in positions]

    @cached_property
    def num_decode(self) -> int:
        return sum(not request.is_chunk for request in self.requests)

    def layout(self, *, as_tree: bool) -> Layout:
        width = max(map(len, self.pages))
        tables = torch.tensor([pages + [0] * (width - len(pages)) for pages in self.pages], dtype=torch.int32)
        num_rows = [request.num_rows for request in self.requests]
        starts = [request.kv_len - request.num_rows for request in self.requests]
        tree = self._tree() if as_tree else None
        slots = range(len(num_rows))
        return make_layout(tables, self.page_size, slots, starts, num_rows, self.num_decode, tree)[0]

    def _tree(self) -> Tree:
        decode = self.requests[: self.num_decode]
        most, nodes = max(request.num_rows for request in decode), max(len(request.parents) for request in decode)
        visible = torch.zeros(len(decode), most, nodes, dtype=torch.bool)
        for index, request in enumerate(decode):
            for row, seen in enumerate(request.visible()):
                visible[index, row, list(seen)] = True
        return Tree(tuple(request.prefix for request in decode), visible)

    def _inputs(self, layer: AttentionLayer, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        num_rows = sum(request.num_rows for request in self.requests)
        q, k, v = (
            torch.randn(num_rows, heads, layer.head_dim, generator=generator).to(self.dtype)
            for heads in (layer.num_heads, layer.num_kv_heads, layer.num_kv_heads)
        )
        return q, k, None if layer.latent_dim else v

    def run(self, layout: Layout) -> list[Tensor]:
        """Every layer's output."""
        backend = TorchNativeAttention(LAYERS, self.caches)
        backend.plan(layout)
        return [backend.run(index, *self.inputs[index]) for index in range(len(LAYERS))]

    def expected(self, index: int) -> Tensor:
        """The layer's output by the definition, [T, heads * value_dim] in float64; run() has written the cache."""
        layer, q = LAYERS[index], self.inputs[index][0].double()
        cache = self.caches[index].flatten(0, 1).double()
        kv_heads = [head * layer.num_kv_heads // layer.num_heads for head in range(layer.num_heads)]
        out: list[Tensor] = []
        for number, request in enumerate(self.requests):
            for row in range(request.num_rows):
                kv = cache[self.rows(number, request.seen(row, layer.window))]
                keys, values = kv[:, 0, kv_heads], kv[:, -1, kv_heads, : layer.value_dim]
                weights = ((keys * q[len(out)]).sum(2) * layer.scale).softmax(0)
                out.append((weights.unsqueeze(2) * values).sum(0).view(-1))
        return torch.stack(out)

    def check(self, *, as_tree: bool) -> None:
        for index, (layer, out) in enumerate(zip(LAYERS, self.run(self.layout(as_tree=as_tree)), strict=True)):
            expected = self.expected(index)
            assert out.shape == expected.shape and out.dtype == self.dtype
            difference = float((out.double() - expected).abs().max())  # NaN, should any be read, fails as well
            assert difference < TOLERANCE[self.dtype], layer


def chunks(rng: random.Random) -> list[Request]:
    return [chain(rng.randrange(12), rng.randint(1, 6), is_chunk=True) for _ in range(rng.randrange(3))]


@pytest.fixture(params=[None, 150, 20], ids=lambda limit: f"mask<={limit}")
def mask_limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in few groups; groups that are cut; requests too large for a group, which run one at a time."""
    if request.param:
        monkeypatch.setattr(gather, "_MAX_MASK_ELEMENTS", request.param)
        monkeypatch.setattr(gather, "_FREE_PADDING", 0)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("mask_limit")
class TestAgainstTheDefinition:
    def test_chains(self, seed: int, page_size: int, dtype: torch.dtype) -> None:
        """1 to 6 rows each, some without anything before them; chunks behind."""
        rng = random.Random(seed)
        decode = [chain(rng.choice([0, 1, rng.randrange(60)]), rng.randint(1, 6)) for _ in range(rng.randint(1, 7))]
        Step([*decode, *chunks(rng)], page_size, dtype).check(as_tree=False)

    def test_chains_of_one_length(self, seed: int, page_size: int, dtype: torch.dtype) -> None:
        rng = random.Random(seed)
        Step([chain(rng.randrange(30), 4) for _ in range(seed + 1)], page_size, dtype).check(as_tree=False)

    def test_trees(self, seed: int, page_size: int, dtype: torch.dtype) -> None:
        """All nodes are rows; requests without drafts have a tree of their bonus token only."""
        rng = random.Random(seed)
        decode = [tree(rng.randrange(40), rng.choice([1, 5, 9]), rng) for _ in range(rng.randint(1, 6))]
        Step([*decode, *chunks(rng)], page_size, dtype).check(as_tree=True)

    def test_last_levels(self, seed: int, page_size: int, dtype: torch.dtype) -> None:
        """Drafting: the levels before are in the cache."""
        rng = random.Random(seed)
        decode = [last_level(rng.randrange(1, 40), 3, rng.randint(1, 4), rng) for _ in range(rng.randint(1, 4))]
        decode.append(chain(rng.randrange(40), 1))
        Step(decode, page_size, dtype).check(as_tree=True)


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_a_chain_as_a_tree_is_causal(page_size: int) -> None:
    requests = [chain(9, 4), chain(0, 6), chain(33, 1), chain(5, 3, is_chunk=True)]
    causal, as_tree = (Step(requests, page_size, torch.float32) for _ in range(2))
    for left, right in zip(
        causal.run(causal.layout(as_tree=False)), as_tree.run(as_tree.layout(as_tree=True)), strict=True
    ):
        assert torch.equal(left, right)


def test_several_rows_equal_one_row_at_a_time() -> None:
    """Verifying drafts that turn out right gives what plain decoding gives."""
    requests = [chain(9, 4), chain(21, 4)]
    together = Step(requests, 4, torch.float32)
    outs = together.run(together.layout(as_tree=False))
    step = Step(requests, 4, torch.float32)
    backend = TorchNativeAttention(LAYERS, step.caches)
    tables = step.layout(as_tree=False).page_tables
    for row in range(4):
        own = torch.tensor([row, 4 + row])
        backend.plan(make_layout(tables, 4, [0, 1], [9 + row, 21 + row], [1, 1], 2)[0])
        for index, (q, k, v) in enumerate(step.inputs):
            out = backend.run(index, q[own], k[own], None if v is None else v[own])
            assert torch.allclose(out, outs[index][own], atol=1e-5)


def test_drafts_beyond_the_pages_do_no_harm() -> None:
    """They go to the sink, which holds anything: the rows before them see nothing of it."""
    step = Step([chain(6, 2), chain(3, 1)], 4, torch.float32)
    step.run(step.layout(as_tree=False))
    expected = [step.expected(index) for index in range(len(LAYERS))]
    again = Step([chain(6, 2), chain(3, 1)], 4, torch.float32)
    tables = torch.tensor([[*again.pages[0], 0], [*again.pages[1], 0, 0]], dtype=torch.int32)
    layout, _ = make_layout(tables, 4, [0, 1], [6, 3], [4, 3], 2)  # two rows more each; request 1's have pages 1 and 0
    nans = torch.tensor([2, 3, 5, 6])
    own = torch.tensor([0, 1, 4])
    backend = TorchNativeAttention(LAYERS, again.caches)
    backend.plan(layout)
    for index, (q, k, v) in enumerate(again.inputs):
        rows = [q.new_full((7, *part.shape[1:]), float("nan")).index_copy_(0, own, part) for part in (q, k)]
        values = None if v is None else q.new_full((7, *v.shape[1:]), float("nan")).index_copy_(0, own, v)
        out = backend.run(index, rows[0], rows[1], values)
        assert float((out[own].double() - expected[index]).abs().max()) < 1e-5
        assert bool(out[nans].isnan().all())


@pytest.mark.parametrize("as_tree", [False, True])
def test_a_nan_stays_in_its_own_request(as_tree: bool) -> None:
    step = Step([chain(9, 2), chain(21, 4), chain(3, 1)], 4, torch.float32)
    for cache in step.caches:
        cache[step.pages[0]] = float("nan")
    for index, out in enumerate(step.run(step.layout(as_tree=as_tree))):
        assert bool(out[2:].isfinite().all())
        assert bool(out[0].isnan().all()) == (LAYERS[index].window != 1)


def test_row_counts_do_not_multiply_calls() -> None:
    """Requests with different numbers of rows share a call; rows are padded, and the pure case has nothing to pad."""
    planner = GatherPlanner(4, torch.float32, torch.device("cpu"))

    def plan(num_rows: Sequence[int]) -> gather.Gather:
        layout = Step([chain(20, count) for count in num_rows], 4, torch.float32).layout(as_tree=False)
        return planner.plan(layout, None, heads_per_kv=3, one_row_each=has_one_row_each(layout))

    (ragged,) = plan([4, 1, 3, 2]).decode
    assert (ragged.size, ragged.num_rows) == (4, 4)
    (equal,) = plan([3, 3, 3]).decode
    assert equal.rows is None and equal.kept is None
    (plain,) = plan([1, 1, 1]).decode
    assert plain.rows is None and plain.kept is None and plain.mask is None and plain.num_rows == 1


def test_masks_of_decode_requests_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "_MAX_MASK_ELEMENTS", 700)
    layout = Step([chain(20, 4), chain(18, 2), chain(16, 4), chain(60, 6)], 4, torch.float32).layout(as_tree=False)
    planned = GatherPlanner(4, torch.float32, torch.device("cpu")).plan(
        layout, None, heads_per_kv=3, one_row_each=False
    )
    masks = [group.mask for group in planned.decode] + [block.mask for block in planned.chunks]
    assert all(mask is not None and mask.numel() <= 700 for mask in masks)
    assert sum(group.size for group in planned.decode) + len(planned.chunks) == 4


def test_a_tree_that_starts_after_its_rows_is_a_mistake() -> None:
    step = Step([chain(9, 2)], 4, torch.float32)
    layout = step.layout(as_tree=True)
    assert layout.tree is not None
    with pytest.raises(AssertionError, match=r"trees of requests \[0\] start at \(10,\)"):
        TorchNativeAttention(LAYERS, step.caches).plan(replace(layout, tree=replace(layout.tree, starts=(10,))))


def test_doctests() -> None:
    assert all(doctest.testmod(module).failed == 0 for module in (gather, spans))
