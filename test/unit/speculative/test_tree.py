"""The arithmetic of dynamic trees against plain Python over paths."""

import itertools
import math

import pytest
import torch

from slipstream.speculative.tree import ROOT, TreeBuilder, best_first, likeliest, select, visible_nodes

CPU = torch.device("cpu")
VOCAB_SIZE = 7
Path = tuple[int, ...]


def random_forest(generator: torch.Generator, size: int, spread: int) -> tuple[list[int], list[float]]:
    """Parents below their children, and scores that never rise: few different ones, so that many are equal."""
    parents, scores = [], []
    for number in range(size):
        parent = int(torch.randint(-1, number, (), generator=generator)) if number else ROOT
        loss = int(torch.randint(0, spread, (), generator=generator)) / 2
        parents.append(parent)
        scores.append((0.0 if parent == ROOT else scores[parent]) - loss)
    return parents, scores


@pytest.mark.parametrize("spread", [1, 2, 50])
def test_select_keeps_the_best_with_their_parents(spread: int) -> None:
    generator = torch.Generator().manual_seed(spread)
    for _ in range(50):
        forests = [random_forest(generator, 12, spread) for _ in range(3)]
        counts = torch.randint(1, 13, (3,), generator=generator).tolist()
        chosen, parents = select(
            torch.tensor([scores for _, scores in forests]), torch.tensor([own for own, _ in forests]), counts
        )
        assert chosen.shape == parents.shape == (3, max(counts))
        for slot, (own, scores) in enumerate(forests):
            count = counts[slot]
            kept = sorted(sorted(range(12), key=lambda number: (-scores[number], number))[:count])
            assert chosen[slot].tolist() == kept + [12] * (max(counts) - count)
            nodes = {ROOT: 0} | {number: node for node, number in enumerate(kept, 1)}
            expected = [nodes[own[number]] for number in kept]  # a missing parent would be a KeyError
            assert parents[slot].tolist() == expected + [0] * (max(counts) - count)


def test_select_with_probability_0() -> None:
    scores = torch.tensor([[-1.0, -torch.inf, -2.0, -torch.inf, -torch.inf, -torch.inf]])
    chosen, parents = select(scores, torch.tensor([[ROOT, ROOT, 0, 0, 1, 1]]), [5])
    assert chosen.tolist() == [[0, 1, 2, 3, 4]]
    assert parents.tolist() == [[0, 0, 1, 1, 2]]


def test_best_first_prefers_the_first_of_equals() -> None:
    assert best_first(torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]]), 4).tolist() == [[1, 2, 4, 3]]
    assert best_first(torch.full((1, 100), -torch.inf), 3).tolist() == [[0, 1, 2]]


def test_likeliest_are_log_probabilities() -> None:
    scores = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 4
    log_probs, token_ids = likeliest(scores.clone(), 6)
    for row in range(5):
        total = math.log(sum(math.exp(score) for score in scores[row].tolist()))
        expected = sorted(((score - total, token) for token, score in enumerate(scores[row].tolist())), reverse=True)
        assert token_ids[row].tolist() == [token for _, token in expected[:6]]
        assert log_probs[row].tolist() == pytest.approx([log_prob for log_prob, _ in expected[:6]], abs=1e-5)


def test_likeliest_of_damaged_rows_never_outrank_their_parents() -> None:
    scores = torch.zeros(4, 6)
    scores[0, 1], scores[1, 2], scores[2, 1:], scores[3, 0] = torch.nan, torch.inf, -torch.inf, 1e30
    log_probs, token_ids = likeliest(scores, 3)
    assert (log_probs <= 0).all()
    assert ((token_ids >= 0) & (token_ids < 6)).all()
    assert all(len(set(row)) == 3 for row in token_ids.tolist())
    assert log_probs[2].tolist() == [0.0, -torch.inf, -torch.inf]
    assert log_probs[3].tolist()[0] == 0.0


def test_visible_nodes_are_the_ancestors() -> None:
    """Four frontiers of three nodes with random parents."""
    generator = torch.Generator().manual_seed(2)
    visible = torch.zeros(2, 1, 0, dtype=torch.bool)
    ancestors: list[list[set[int]]] = [[set()], [set()]]
    for level in range(4):
        parents = torch.randint(0, len(ancestors[0]), (2, 3), generator=generator)
        visible = visible_nodes(visible, parents)
        ancestors = [
            [before[int(parent)] | {3 * level + node} for node, parent in enumerate(own)]
            for before, own in zip(ancestors, parents, strict=True)
        ]
        for slot, node in itertools.product(range(2), range(3)):
            assert set(visible[slot, node].nonzero().flatten().tolist()) == ancestors[slot][node]


def predicted(slot: int, path: Path) -> torch.Tensor:
    """[vocab]: random scores, another row for every path of every slot."""
    seed = sum((token + 1) * 11**depth for depth, token in enumerate(path)) * 5 + slot
    return torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 2


def brute_force(slot: int, topk: int, depth: int, count: int) -> set[Path]:
    scores: dict[Path, float] = {(): 0.0}
    frontier: list[Path] = [()]
    for _ in range(depth):
        level: dict[Path, float] = {}
        for path in frontier:
            log_probs = predicted(slot, path).log_softmax(0)
            for token in log_probs.topk(topk).indices.tolist():
                level[(*path, token)] = scores[path] + float(log_probs[token])
        scores |= level
        frontier = sorted(level, key=lambda path: -level[path])[:topk]
    del scores[()]
    return set(sorted(scores, key=lambda path: -scores[path])[:count])


@pytest.mark.parametrize("topk", [1, 2, 3, 7])
def test_builder_against_brute_force(topk: int) -> None:
    """Slots of depth 4, 4, 2 and 1, which fall away on the way."""
    depths, counts = [4, 4, 2, 1], [min(9, topk + (depth - 1) * topk**2) for depth in (4, 4, 2, 1)]
    builder = TreeBuilder(4, topk, 4, CPU)
    expanded: list[list[Path]] = [[()] for _ in depths]
    builder.add(*likeliest(torch.stack([predicted(slot, ()) for slot in range(4)]), topk))
    for level in range(1, 4):
        active = sum(depth > level for depth in depths)
        frontier = builder.next_frontier(active)
        before = [path for own in expanded for path in own]
        expanded = [
            [
                (*before[int(row)], int(token))
                for row, token in zip(frontier.parent_rows[slot], frontier.token_ids[slot], strict=True)
            ]
            for slot in range(active)
        ]
        paths = frontier.paths()
        for row, path in enumerate(path for own in expanded for path in own):
            assert paths.token_ids[row][paths.counted[row]].tolist() == list(path)
        scores = [predicted(slot, path) for slot, own in enumerate(expanded) for path in own]
        builder.add(*likeliest(torch.stack(scores), topk))
    token_ids, parents = builder.build(counts)
    for slot, (depth, count) in enumerate(zip(depths, counts, strict=True)):
        nodes: list[Path] = [()]
        for token, parent in zip(token_ids[slot, :count].tolist(), parents[slot, :count].tolist(), strict=True):
            nodes.append((*nodes[parent], token))
        assert len(set(nodes)) == count + 1
        assert set(nodes[1:]) == brute_force(slot, topk, depth, count)
