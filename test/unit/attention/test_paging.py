"""Layouts against positions and cache rows that are counted one by one."""

import random

import pytest
import torch

from slipstream.attention.base import Tree
from slipstream.attention.paging import locate, make_layout, tree_positions

TABLES = torch.tensor([[7, 2], [5, 0]], dtype=torch.int32)


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("most", [1, 5])
@pytest.mark.parametrize("seed", range(3))
def test_against_counting(seed: int, most: int, page_size: int) -> None:
    rng = random.Random(seed)
    num_slots, max_pages = 6, 12
    pages = list(range(1, num_slots * max_pages + 1))
    rng.shuffle(pages)
    tables = torch.tensor(pages, dtype=torch.int32).view(num_slots, max_pages)
    slots = rng.sample(range(num_slots), 4)
    num_rows = [rng.randint(1, most) for _ in slots]
    starts = [rng.randint(0, max_pages * page_size - count) for count in num_rows]
    layout, positions = make_layout(tables, page_size, slots, starts, num_rows, num_decode=3)

    cells = [(slot, start + j) for slot, start, n in zip(slots, starts, num_rows, strict=True) for j in range(n)]
    assert positions.tolist() == [position for _, position in cells]
    assert layout.kv_rows.tolist() == [
        pages[slot * max_pages + position // page_size] * page_size + position % page_size for slot, position in cells
    ]
    ends = [start + count for start, count in zip(starts, num_rows, strict=True)]
    assert layout.kv_lens.tolist() == list(layout.kv_lens_cpu) == ends
    assert layout.num_rows == tuple(num_rows) and layout.num_decode == 3 and layout.tree is None
    width = -(-max(ends) // page_size)
    assert layout.page_tables.tolist() == [pages[slot * max_pages : slot * max_pages + width] for slot in slots]
    assert layout.page_tables.dtype == torch.int32
    assert {part.dtype for part in (positions, layout.kv_rows, layout.kv_lens)} == {torch.int64}


def test_the_example() -> None:
    layout, positions = make_layout(TABLES, 4, [0, 1], [5, 0], [2, 3], num_decode=1)
    assert layout.kv_lens.tolist() == [7, 3]
    assert layout.kv_rows.tolist() == [9, 10, 20, 21, 22]
    assert positions.tolist() == [5, 6, 0, 1, 2]
    assert locate(TABLES, torch.tensor([0, 0]), torch.tensor([1, 5]), 4).tolist() == [29, 9]


def test_positions_beyond_the_tables_are_a_mistake() -> None:
    with pytest.raises(AssertionError, match="9 positions, but 2 pages"):
        make_layout(TABLES, 4, [0], [6], [3], num_decode=1)


def test_positions_in_a_tree() -> None:
    """A root at 5 with children 1 and 2, node 3 below node 2; a request without drafts at 1; a chunk at 0..2."""
    visible = torch.zeros(2, 4, 4, dtype=torch.bool)
    for node, path in enumerate([[0], [0, 1], [0, 2], [0, 2, 3]]):
        visible[0, node, path] = True
    visible[1, 0, 0] = True
    tables = torch.arange(30, dtype=torch.int32).view(3, 10)
    layout, positions = make_layout(tables, 1, [0, 2, 1], [5, 1, 0], [4, 1, 3], 2, Tree((5, 1), visible))
    assert positions.tolist() == [5, 6, 7, 8, 1, 0, 1, 2]
    assert tree_positions(layout, positions).tolist() == [5, 6, 6, 7, 1, 0, 1, 2]


def test_positions_of_a_last_level() -> None:
    """Drafting: two roots at 5, 6 are in the cache, and the rows at 7, 8 are children of the second."""
    visible = torch.tensor([[[False, True, True, False], [False, True, False, True]]])
    layout, positions = make_layout(TABLES, 8, [0], [7], [2], 1, Tree((5,), visible))
    assert positions.tolist() == [7, 8]
    assert tree_positions(layout, positions).tolist() == [6, 6]


def test_a_tree_needs_no_decode_requests() -> None:
    layout, positions = make_layout(TABLES, 4, [1], [0], [3], 0, Tree((), torch.zeros(0, 1, 1, dtype=torch.bool)))
    assert tree_positions(layout, positions).tolist() == [0, 1, 2]
