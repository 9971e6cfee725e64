"""The exact rule against a walk in plain Python, on random trees."""

import random
from collections.abc import Sequence

import pytest
import torch

from slipstream.sampling.candidates import Candidates
from slipstream.sampling.verify import verify

VOCAB = 4  # small, so that drafts often match


def random_case(draw: random.Random, *, is_chain: bool, most: int) -> tuple[Candidates, list[list[int]]]:
    """Trees whose siblings differ, and a drawn token for every node. Padding repeats what could mislead."""
    num_drafts, token_ids, parents, drawn = [], [], [], []
    for _ in range(draw.randint(1, 6)):
        tokens: list[int] = []
        above: list[int] = []
        children: dict[int, set[int]] = {}
        for node in range(draw.randint(0, most)):
            parent = node if is_chain else draw.randint(max(0, node - 3), node)
            free = sorted(set(range(VOCAB)) - children.get(parent, set()))
            if not free:
                break
            tokens.append(draw.choice(free))
            above.append(parent)
            children.setdefault(parent, set()).add(tokens[-1])
        num_drafts.append(len(tokens))
        token_ids.append(tokens)
        parents.append(above)
        drawn.append([draw.randrange(VOCAB) for _ in range(most + 1)])
    width = max(num_drafts)
    for tokens, above in zip(token_ids, parents, strict=True):
        while len(tokens) < width:
            above.append(len(tokens) if is_chain else draw.randint(0, len(tokens)))
            tokens.append(draw.randrange(VOCAB))
    shape = (len(num_drafts), width)
    candidates = Candidates(
        tuple(num_drafts),
        torch.tensor(token_ids, dtype=torch.int64).view(shape),
        torch.tensor(parents, dtype=torch.int64).view(shape),
        is_chain,
    )
    return candidates, [row[: width + 1] for row in drawn]


def walk(
    tokens: Sequence[int], parents: Sequence[int], drawn: Sequence[int], cap: int | None
) -> tuple[list[int], list[int]]:
    """Nodes and tokens of one slot's run."""
    nodes, run = [0], [drawn[0]]
    while cap is None or len(nodes) <= cap:
        here = nodes[-1]
        found = [i + 1 for i, token in enumerate(tokens) if parents[i] == here and token == run[-1]]
        if not found:
            break
        nodes.append(found[0])
        run.append(drawn[found[0]])
    return nodes, run


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("is_chain", [True, False])
@pytest.mark.parametrize("seed", range(60))
def test_equals_the_walk(seed: int, is_chain: bool, capped: bool) -> None:
    draw = random.Random(seed)
    candidates, drawn = random_case(draw, is_chain=is_chain, most=draw.choice([3, 7, 15]))
    caps = [draw.randint(0, 4) for _ in drawn] if capped else None
    broken = [{draw.randrange(candidates.num_nodes)} for _ in drawn]
    is_finite = torch.tensor([[n not in bad for n in range(candidates.num_nodes)] for bad in broken])
    found = verify(candidates, torch.tensor(drawn), is_finite, torch.tensor(caps) if caps else None)
    for slot, count in enumerate(candidates.num_drafts):
        nodes, run = walk(
            candidates.token_ids[slot, :count].tolist(),
            candidates.parents[slot, :count].tolist(),
            drawn[slot],
            caps[slot] if caps else None,
        )
        padding = found.nodes.shape[1] - len(nodes)
        assert found.num_tokens[slot] == len(run)
        assert found.nodes[slot].tolist() == nodes + nodes[-1:] * padding
        assert found.token_ids[slot].tolist() == run + run[-1:] * padding
        assert found.bonus[slot] == run[-1]
        assert bool(found.is_finite[slot]) == broken[slot].isdisjoint(nodes)


def test_the_cases_above_accept_runs_of_many_lengths() -> None:
    lengths = set()
    for seed in range(60):
        for is_chain in (True, False):
            draw = random.Random(seed)
            candidates, drawn = random_case(draw, is_chain=is_chain, most=draw.choice([3, 7, 15]))
            finite = torch.ones(len(drawn), candidates.num_nodes, dtype=torch.bool)
            lengths |= {(is_chain, n) for n in verify(candidates, torch.tensor(drawn), finite).num_tokens.tolist()}
    assert {(is_chain, n) for is_chain in (True, False) for n in (1, 2, 3, 4)} <= lengths


def test_a_whole_path_is_accepted_up_to_its_leaf() -> None:
    # root -> 5 -> 6 -> 7, root -> 8 -> 6
    tree = Candidates((5,), torch.tensor([[5, 8, 6, 6, 7]]), torch.tensor([[0, 0, 1, 2, 3]]), is_chain=False)
    finite = torch.ones(1, 6, dtype=torch.bool)
    found = verify(tree, torch.tensor([[5, 6, 0, 7, 0, 9]]), finite)
    assert found.num_tokens.tolist() == [4]
    assert found.nodes.tolist() == [[0, 1, 3, 5, 5, 5]]
    assert found.token_ids.tolist() == [[5, 6, 7, 9, 9, 9]]
    found = verify(tree, torch.tensor([[8, 1, 6, 1, 1, 1]]), finite)
    assert (found.nodes.tolist(), found.token_ids.tolist()) == ([[0, 2, 4, 4, 4, 4]], [[8, 6, 1, 1, 1, 1]])


def test_without_drafts() -> None:
    none = Candidates.none(2, torch.device("cpu"))
    found = verify(none, torch.tensor([[3], [4]]), torch.tensor([[True], [False]]), torch.tensor([0, 5]))
    assert (found.nodes.tolist(), found.token_ids.tolist()) == ([[0], [0]], [[3], [4]])
    assert (found.num_tokens.tolist(), found.is_finite.tolist()) == ([1, 1], [True, False])
