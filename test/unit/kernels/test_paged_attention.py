"""The ragged attention kernel against softmax(q k^T) v in float64, one row and one head at a time."""

import doctest
import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from slipstream.kernels import paged_attention as module
from slipstream.kernels.paged_attention import (
    AttentionConfig,
    RowBlocks,
    TreeMask,
    attention_config,
    choose_splits,
    paged_attention,
    paged_attention_reference,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = AttentionConfig(block_n=16, num_warps=4, num_stages=2)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3}
SCALE = 0.3


@dataclass(frozen=True)
class Block:
    """Rows at the positions first .. first + size - 1 of a request; `parents` make them the last nodes of a tree.

    Parent -1 is the root's. The tree's first node lies at position first + size - len(parents).
    """

    slot: int
    first: int
    size: int
    parents: tuple[int, ...] = ()

    @property
    def start(self) -> int:
        return self.first + self.size - len(self.parents)

    def path(self, node: int) -> list[int]:
        return [*self.path(self.parents[node]), node] if node >= 0 else []

    def seen(self, row: int, window: int | None, sees_block: bool) -> list[int]:
        """Positions that a row sees."""
        if self.parents:
            nodes = self.path(len(self.parents) - self.size + row)
            line = [*range(self.start), *(self.start + node for node in nodes)]
            return line if window is None else line[-window:]
        low = 0 if window is None else max(self.first + row - window + 1, 0)
        return list(range(low, self.first + (self.size if sees_block else row + 1)))


class Case:
    """Blocks over shuffled pages; whatever no request wrote, the sink included, is NaN."""

    def __init__(
        self,
        blocks: Sequence[Block],
        page_size: int = 4,
        heads: tuple[int, int] = (4, 2),
        head_dim: int = 16,
        dtype: torch.dtype = torch.float32,
        rows_per_block: int | None = None,
    ) -> None:
        rng = random.Random(0)
        generator = torch.Generator().manual_seed(0)
        self.blocks, self.page_size, self.heads, self.dtype = blocks, page_size, heads, dtype
        lens = [max((b.first + b.size for b in blocks if b.slot == slot), default=0) for slot in range(self.num_slots)]
        counts = [-(-length // page_size) for length in lens]
        pages = list(range(1, sum(counts) + 1))
        rng.shuffle(pages)
        width = max(counts) + 1
        self.tables = [[pages.pop() for _ in range(count)] + [0] * (width - count) for count in counts]
        cache = torch.randn(sum(counts) + 1, page_size, 2, heads[1], head_dim, generator=generator)
        own = {self.cache_row(slot, at) for slot, length in enumerate(lens) for at in range(length)}
        cache.flatten(0, 1)[[row for row in range(cache.shape[0] * page_size) if row not in own]] = float("nan")
        num_rows = sum(block.size for block in blocks)
        self.cache = cache.to(DEVICE, dtype)
        self.q = torch.randn(num_rows, heads[0], head_dim, generator=generator).to(DEVICE, dtype)
        self.row_blocks = self._row_blocks(rows_per_block)

    @property
    def num_slots(self) -> int:
        return max(block.slot for block in self.blocks) + 1

    def cache_row(self, slot: int, at: int) -> int:
        return self.tables[slot][at // self.page_size] * self.page_size + at % self.page_size

    def _row_blocks(self, rows_per_block: int | None) -> RowBlocks:
        starts = [sum(block.size for block in self.blocks[:index]) for index in range(len(self.blocks))]
        columns = ([block.slot for block in self.blocks], starts, [block.size for block in self.blocks])
        slots, firsts, sizes = (torch.tensor(column, dtype=torch.int32, device=DEVICE) for column in columns)
        positions = [block.first + row for block in self.blocks for row in range(block.size)]
        return RowBlocks(
            torch.tensor(self.tables, dtype=torch.int32, device=DEVICE),
            torch.tensor(positions, device=DEVICE),
            slots,
            firsts,
            sizes,
            rows_per_block or max(block.size for block in self.blocks),
            max_kv_len=4096,
        )

    def tree_mask(self, window: int | None) -> TreeMask:
        words = -(-max(len(block.parents) for block in self.blocks) // 64)
        bits, positions = [], []
        for block in self.blocks:
            for row in range(block.size):
                path = block.path(len(block.parents) - block.size + row)
                positions.append(block.start + len(path) - 1)
                nodes = path if window is None else path[-window:]
                bits.append([_word(node - 64 * word for node in nodes) for word in range(words)])
        starts = torch.tensor([block.start for block in self.blocks], device=DEVICE)
        return TreeMask(starts, torch.tensor(bits, device=DEVICE), torch.tensor(positions, device=DEVICE))

    def run(
        self,
        window: int | None = None,
        sees_block: bool = False,
        splits: int | None = 1,
        config: AttentionConfig | None = SMALL,
    ) -> Tensor:
        tree = self.tree_mask(window) if any(block.parents for block in self.blocks) else None
        out = torch.full_like(self.q.flatten(1), float("nan"))
        paged_attention(
            self.q, self.cache, self.row_blocks, out, SCALE,
            window=window, tree=tree, sees_block=sees_block, splits=splits, config=config,
        )  # fmt: skip
        return out

    def expected(self, window: int | None = None, sees_block: bool = False) -> Tensor:
        cache, q, out = self.cache.cpu().double().flatten(0, 1), self.q.cpu().double(), []
        for block in self.blocks:
            for row in range(block.size):
                kv = cache[[self.cache_row(block.slot, at) for at in block.seen(row, window, sees_block)]]
                for head in range(self.heads[0]):
                    k, v = kv[:, :, head // (self.heads[0] // self.heads[1])].unbind(1)
                    out.append((k @ q[len(out) // self.heads[0], head] * SCALE).softmax(0) @ v)
        return torch.stack(out).view(self.q.shape[0], -1)

    def check(self, window: int | None = None, sees_block: bool = False, **options: object) -> None:
        out = self.run(window, sees_block, **options)  # type: ignore[arg-type]
        difference = float((out.cpu().double() - self.expected(window, sees_block)).abs().max())
        assert difference < TOLERANCE[self.dtype]


def _word(bits: Sequence[int]) -> int:
    """Those of 0 .. 63 as the bits of a signed integer."""
    value = sum(1 << bit for bit in bits if 0 <= bit < 64)
    return value - (1 << 64) if value >= 1 << 63 else value


RAGGED = [Block(0, 0, 1), Block(1, 69, 1), Block(2, 29, 3), Block(3, 14, 2), Block(4, 0, 3)]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("window", [None, 3, 20])
@pytest.mark.parametrize("splits", [1, 3, 7])  # of which some have no keys
def test_rows_of_all_lengths(dtype: torch.dtype, window: int | None, splits: int) -> None:
    Case(RAGGED, dtype=dtype).check(window, splits=splits)


@pytest.mark.parametrize("splits", [17, 128])
def test_more_splits_than_there_are_keys(splits: int) -> None:
    Case([Block(0, 69, 1)], heads=(1, 1)).check(splits=splits, config=AttentionConfig(16, 4, 1))


@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_page_sizes(page_size: int) -> None:
    Case(RAGGED, page_size).check()


@pytest.mark.parametrize(("heads", "head_dim"), [((1, 1), 16), ((2, 2), 24), ((8, 2), 16), ((3, 1), 64), ((2, 1), 80)])
def test_heads(heads: tuple[int, int], head_dim: int) -> None:
    Case(RAGGED[2:], heads=heads, head_dim=head_dim).check(splits=2)


@pytest.mark.parametrize("few_merges", [0, 1024])
def test_a_merge_by_one_program_or_by_several(few_merges: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FEW_MERGES", few_merges)
    Case([Block(0, 40, 2), Block(1, 3, 1)], head_dim=72, rows_per_block=3).check(splits=4)


@pytest.mark.parametrize("block_n", [16, 32, 64])
def test_steps_of_any_length(block_n: int) -> None:
    Case(RAGGED).check(window=33, splits=2, config=AttentionConfig(block_n, 4, 1))


def test_configs_of_its_own_choice() -> None:
    Case(RAGGED, dtype=torch.float16).check(splits=None, config=None)


@pytest.mark.parametrize("window", [None, 5])
def test_a_chunk_is_several_blocks(window: int | None) -> None:
    blocks = [Block(0, 7 + first, min(8, 21 - first)) for first in range(0, 21, 8)]
    Case([*blocks, Block(1, 0, 8), Block(1, 8, 2)]).check(window)


@pytest.mark.parametrize(("window", "splits"), [(None, 1), (4, 1), (None, 3)])
def test_blocks_of_more_rows_than_a_program_takes(window: int | None, splits: int) -> None:
    """5 rows of 16 heads in fp32: three programs; 2 rows: the first of these does it."""
    Case([Block(0, 3, 5), Block(1, 9, 2)], heads=(16, 1)).check(window, splits=splits)


@pytest.mark.parametrize(("window", "splits"), [(None, 1), (4, 1), (None, 2)])
def test_rows_that_see_their_whole_block(window: int | None, splits: int) -> None:
    Case([Block(0, 20, 5), Block(1, 0, 3)]).check(window, sees_block=True, splits=splits)
    Case([Block(0, 3, 5)], heads=(16, 1)).check(window, sees_block=True, splits=1)


@pytest.mark.parametrize(("window", "splits"), [(None, 1), (None, 3), (1, 1), (2, 2), (9, 1)])
def test_trees(window: int | None, splits: int) -> None:
    """A whole tree, the last level of one, a root alone, and one with more nodes than a word has bits."""
    rng = random.Random(1)
    large = (-1, *(rng.randrange(node) for node in range(1, 70)))
    blocks = [
        Block(0, 17, 5, (-1, 0, 0, 1, 1)),
        Block(1, 26, 2, (-1, -1, 0, 1, 3, 2)),
        Block(2, 33, 1, (-1,)),
        Block(3, 72, 3, large),
    ]
    Case(blocks).check(window, splits=splits)


def test_empty_blocks_and_rows_without_a_block() -> None:
    case = Case([Block(0, 9, 2), Block(1, 3, 0), Block(2, 21, 3)], rows_per_block=4)
    for splits in (1, 2):
        case.check(splits=splits)
    case.q = torch.cat((case.q, case.q))
    assert bool(case.run()[5:].isnan().all()), "rows without a block were written"


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")  # of the interpreter
@pytest.mark.parametrize("splits", [1, 3])
def test_drafts_beyond_the_pages_do_no_harm(splits: int) -> None:
    """Rows whose position lies in the sink, or beyond the page table: the rows before them see nothing of it."""
    whole = Case([Block(0, 5, 3), Block(1, 18, 2)])
    expected = whole.expected()
    table = whole.row_blocks.page_tables[:, :5].clone()  # position 20 would be the first one beyond it
    table[0, 2:] = 0
    sizes = torch.tensor([7, 4], dtype=torch.int32, device=DEVICE)
    starts = torch.tensor([0, 7], dtype=torch.int32, device=DEVICE)
    positions = torch.tensor([*range(5, 12), *range(18, 22)], device=DEVICE)
    blocks = RowBlocks(table, positions, whole.row_blocks.slots, starts, sizes, 7, 4096)
    q = torch.full((11, 4, 16), float("nan"), device=DEVICE)
    q[[0, 1, 2, 7, 8]] = whole.q
    out = torch.zeros(11, 64, device=DEVICE)
    paged_attention(q, whole.cache, blocks, out, SCALE, splits=splits, config=SMALL)
    assert float((out[[0, 1, 2, 7, 8]].cpu().double() - expected).abs().max()) < 1e-5
    assert bool(out[[3, 4, 5, 6, 9, 10]].isnan().all()), "a NaN in a query must not be lost"


def test_the_dummy_slot_gives_finite_rows() -> None:
    case = Case([Block(0, 9, 2), Block(1, 0, 2)])
    case.row_blocks.page_tables[1] = 0
    out = case.run(splits=2)
    assert bool((out[2:] == 0).all()) and bool(out[:2].isfinite().all())


def test_queries_may_be_columns_of_a_wider_matrix() -> None:
    case = Case(RAGGED)
    expected = case.run()
    case.q = torch.cat((case.q, torch.full_like(case.q, float("nan"))), 1)[:, :4]
    out = torch.empty_like(expected)
    paged_attention(case.q, case.cache, case.row_blocks, out, SCALE, splits=1, config=SMALL)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("sees_block", [False, True])
@pytest.mark.parametrize("as_tree", [False, True])
def test_the_reference(as_tree: bool, sees_block: bool, window: int | None) -> None:
    trees = [Block(0, 17, 5, (-1, 0, 0, 1, 1)), Block(1, 26, 2, (-1, -1, 0, 1, 3, 2))]
    case = Case(trees if as_tree else RAGGED)
    tree = case.tree_mask(window) if as_tree else None
    out = paged_attention_reference(
        case.q.double(), case.cache, case.row_blocks, SCALE, window=window, tree=tree, sees_block=sees_block
    )
    assert float((out.cpu() - case.expected(window, sees_block and not as_tree)).abs().max()) < 1e-12


@pytest.mark.parametrize("programs", [1, 8, 60, 130, 263, 264, 528, 5000])
@pytest.mark.parametrize("length", [1, 256, 1000, 131072])
def test_splits_fill_the_device_and_stay_long_enough(programs: int, length: int) -> None:
    splits = choose_splits(programs, length, 132)
    assert splits == 1 or (programs * splits <= 528 and length // splits >= 64)
    assert splits <= 128 and (splits <= 32 or splits % 32 == 0)
    assert programs * choose_splits(programs, length, 132, queries=64) <= max(264, programs)


@pytest.mark.parametrize(("queries", "element_size"), [(16, 2), (32, 2), (64, 2), (128, 2), (16, 4), (32, 4)])
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
def test_configs_fit_into_shared_memory(queries: int, head_dim: int, element_size: int) -> None:
    """Hopper has 227 KiB: queries, and keys and values once for each stage of the loop."""
    config = attention_config(queries, head_dim, element_size)
    tile = 256 if head_dim > 128 else 128 if head_dim > 64 else 64
    assert (queries + 2 * config.block_n * config.num_stages) * tile * element_size <= 227 * 1024


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0
