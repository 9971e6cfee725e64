"""Rows and depths of a step: the small cases by hand, all cases by the positions that a step may touch."""

import itertools

import pytest

from slipstream.config.drafting import DraftShape
from slipstream.scheduler.reservation import rows_needed, useful_depth

CHAIN = DraftShape(depth=3, topk=1, num_nodes=3)
TREE = DraftShape(depth=3, topk=4, num_nodes=7)


@pytest.mark.parametrize(
    ("shape", "depth", "length_ub", "rows"),
    [
        (CHAIN, 0, 10, 10),  # the row of the tenth token
        (CHAIN, 1, 10, 11),
        (CHAIN, 3, 10, 13),
        (TREE, 1, 10, 14),  # the bonus token and four drafts
        (TREE, 2, 10, 17),  # and seven
        (TREE, 3, 10, 17),
        (DraftShape(depth=5, topk=8, num_nodes=7), 5, 10, 41),  # drafting takes four levels of eight rows
    ],
)
def test_rows_of_one_step(shape: DraftShape, depth: int, length_ub: int, rows: int) -> None:
    assert rows_needed(shape.rows(depth), length_ub, limit=1000, is_chain=shape.is_chain) == rows


def test_every_row_that_counts_has_a_page() -> None:
    """A step from length `length` counts while that is under the limit. Then each of a tree's rows needs a page, and of
    a chain's those at positions under the limit."""
    for shape, length, more, limit in itertools.product((CHAIN, TREE), range(2, 8), range(4), range(3, 12)):
        for depth in range(shape.depth + 1):
            touched = range(length - 1, length - 1 + shape.rows(depth))
            if shape.is_chain:
                touched = range(touched.start, min(touched.stop, limit))
            if length < limit:
                assert rows_needed(shape.rows(depth), length + more, limit, is_chain=shape.is_chain) >= touched.stop


def test_a_chain_needs_no_row_past_the_limit() -> None:
    for length_ub, limit in itertools.product(range(2, 20), range(3, 20)):
        assert rows_needed(CHAIN.rows(3), length_ub, limit, is_chain=True) <= limit
        assert rows_needed(CHAIN.rows(0), length_ub, limit, is_chain=True) <= limit - 1, (
            "the last token's row is not needed"
        )


def test_no_draft_that_the_limit_would_cut_off() -> None:
    assert [useful_depth(3, length, 10, None) for length in range(4, 10)] == [3, 3, 3, 2, 1, 0]
    assert useful_depth(3, 4, 10, max_draft_tokens=0) == 0
