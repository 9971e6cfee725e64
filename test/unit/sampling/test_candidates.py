"""Trees of candidates against walks in plain Python."""

import doctest
import random

import pytest
import torch

from slipstream.sampling import candidates as module
from slipstream.sampling.candidates import Candidates

CPU = torch.device("cpu")


def random_trees(seed: int, num_slots: int, most: int, *, is_chain: bool) -> Candidates:
    """Random counts, random parents (a quarter of them deep), padding of random valid values."""
    draw = random.Random(seed)
    num_drafts = [draw.randint(0, most) for _ in range(num_slots)]
    width = max(num_drafts)
    deep = draw.random() < 0.25
    parents = [
        [i if is_chain or (deep and draw.random() < 0.8) else draw.randint(0, i) for i in range(width)]
        for _ in range(num_slots)
    ]
    token_ids = [[draw.randint(0, 99) for _ in range(width)] for _ in range(num_slots)]
    shape = (num_slots, width)
    return Candidates(
        tuple(num_drafts),
        torch.tensor(token_ids, dtype=torch.int64).view(shape),
        torch.tensor(parents, dtype=torch.int64).view(shape),
        is_chain,
    )


def path_of(candidates: Candidates, slot: int, node: int) -> list[int]:
    """The nodes from the root to `node`."""
    nodes = [node]
    while nodes[0]:
        nodes.insert(0, int(candidates.parents[slot, nodes[0] - 1]))
    return nodes


SEEDS = range(12)


@pytest.mark.parametrize("is_chain", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_depths_ancestors_and_rows_equal_walks_from_the_root(seed: int, is_chain: bool) -> None:
    candidates = random_trees(seed, 5, 9, is_chain=is_chain)
    first = 0
    for slot, count in enumerate(candidates.num_drafts):
        for node in range(candidates.num_nodes):
            if node > count:
                assert not candidates.is_node[slot, node]
                assert candidates.depths[slot, node] == 0
                assert candidates.rows[slot, node] == first
                assert not candidates.ancestors[slot, node].any()
                assert not candidates.ancestors[slot, :, node].any()
                continue
            path = path_of(candidates, slot, node)
            assert candidates.is_node[slot, node]
            assert candidates.depths[slot, node] == len(path) - 1
            assert candidates.ancestors[slot, node].nonzero().flatten().tolist() == path
            assert candidates.rows[slot, node] == first + node
        first += count + 1
    assert candidates.num_rows == first


@pytest.mark.parametrize("is_chain", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_rows_of_the_forward_and_their_paths(seed: int, is_chain: bool) -> None:
    candidates = random_trees(seed, 4, 6, is_chain=is_chain)
    bonus = torch.arange(1000, 1004)
    token_ids, paths = candidates.flat_token_ids(bonus).tolist(), candidates.paths()
    row = 0
    for slot, count in enumerate(candidates.num_drafts):
        drafts = candidates.token_ids[slot, :count].tolist()
        assert token_ids[row : row + count + 1] == [1000 + slot, *drafts]
        for node in range(count + 1):
            found = paths.token_ids[row][paths.counted[row]].tolist()
            assert found == [drafts[i - 1] for i in path_of(candidates, slot, node)[1:]]
            row += 1
    assert row == len(token_ids) == len(paths.token_ids) == len(paths.counted)
    by_node = candidates.per_node(torch.arange(row))
    assert torch.equal(by_node, candidates.rows)


def test_without_padding_nothing_changes() -> None:
    trees = Candidates((3, 3), torch.arange(6).view(2, 3), torch.tensor([[0, 0, 2], [0, 1, 1]]), is_chain=False)
    assert trees.is_full
    assert trees.rows.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert trees.depths.tolist() == [[0, 1, 1, 2], [0, 1, 2, 2]]
    assert trees.flat_token_ids(torch.tensor([90, 91])).tolist() == [90, 0, 1, 2, 91, 3, 4, 5]
    paths = trees.paths()
    found = [row[counted].tolist() for row, counted in zip(paths.token_ids, paths.counted, strict=True)]
    assert found == [[], [0], [1], [1, 2], [], [3], [3, 4], [3, 5]]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 9, 31])
def test_a_chain_written_as_a_tree_is_the_same(length: int) -> None:
    parents = torch.arange(length)[None]
    chain, tree = (Candidates((length,), torch.zeros_like(parents), parents, is_chain=flag) for flag in (True, False))
    assert torch.equal(chain.ancestors, tree.ancestors)
    assert torch.equal(chain.depths, tree.depths)


@pytest.mark.parametrize("is_chain", [True, False])
def test_roots_are_appended_behind(is_chain: bool) -> None:
    trees = random_trees(3, 3, 4, is_chain=is_chain)
    probs = torch.rand(3, trees.num_nodes - 1, 5)
    trees = Candidates(trees.num_drafts, trees.token_ids, trees.parents, is_chain, probs)
    more = trees.with_roots(2)
    assert more.num_drafts == (*trees.num_drafts, 0, 0)
    assert more.num_rows == trees.num_rows + 2
    assert more.rows[3:, 0].tolist() == [trees.num_rows, trees.num_rows + 1]
    assert torch.equal(more.rows[:3], trees.rows)
    assert torch.equal(more.depths[:3], trees.depths)
    assert torch.equal(more.ancestors[:3], trees.ancestors)
    assert more.flat_token_ids(torch.arange(5)).tolist()[-2:] == [3, 4]
    assert more.draft_probs is not None and torch.equal(more.draft_probs[:3], probs)
    assert not more.paths().counted[-2:].any()
    assert trees.with_roots(0) is trees


def test_none() -> None:
    none = Candidates.none(3, CPU)
    assert (none.num_rows, none.num_nodes, none.is_full, none.is_chain) == (3, 1, True, True)
    assert none.flat_token_ids(torch.tensor([5, 6, 7])).tolist() == [5, 6, 7]
    assert none.paths().token_ids.shape == (3, 0)
    assert none.depths.tolist() == [[0]] * 3
    assert none.with_roots(1).num_drafts == (0, 0, 0, 0)
    empty = Candidates.none(0, CPU)
    assert empty.with_roots(2).flat_token_ids(torch.tensor([1, 2])).tolist() == [1, 2]
    assert empty.flat_token_ids(torch.zeros(0, dtype=torch.int64)).tolist() == []


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0
