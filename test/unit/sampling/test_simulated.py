"""Simulated acceptance: how many drafts stand, and which."""

import random

import pytest
import torch

from slipstream.sampling.candidates import Candidates
from slipstream.sampling.simulated import Simulation, first_children


@pytest.mark.parametrize("mean", [1.0, 1.25, 2.6, 4.0])
def test_lengths_have_the_mean_and_lie_beside_it(mean: float) -> None:
    n = 20_000
    coins = (torch.arange(n) + 0.5) / n
    lengths = Simulation(mean, ()).lengths([0] * n, [3] * n, coins) + 1
    assert lengths.double().mean().item() == pytest.approx(mean, abs=1e-4)
    assert set(lengths.tolist()) == {int(mean), int(-(-mean // 1))}


def test_a_pattern_goes_round_over_the_verify_steps_of_each_slot() -> None:
    simulation = Simulation(None, (0, 2, 1))
    coins = torch.zeros(2)
    assert simulation.lengths([5, 7], [3, 3], coins).tolist() == [0, 0]
    assert simulation.lengths([7, 5], [3, 0], coins).tolist() == [2, 2]  # slot 5 has nothing to verify in this step
    assert simulation.lengths([5, 7], [3, 3], coins).tolist() == [2, 1]
    assert simulation.lengths([5, 7], [3, 3], coins).tolist() == [1, 0]
    simulation.release(7)
    assert simulation.lengths([5, 7], [3, 3], coins).tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(10))
def test_first_children_are_followed_to_the_end(seed: int) -> None:
    draw = random.Random(seed)
    counts = [draw.randint(0, 9) for _ in range(4)]
    width = max(counts)
    parents = [[draw.randint(max(0, node - 2), node) for node in range(width)] for _ in counts]
    ids = torch.zeros(4, width, dtype=torch.int64)
    way = first_children(Candidates(tuple(counts), ids, torch.tensor(parents).view(4, -1), is_chain=False))
    for slot, count in enumerate(counts):
        nodes = [0]
        while (children := [i + 1 for i in range(count) if parents[slot][i] == nodes[-1]]) != []:
            nodes.append(children[0])
        assert way.length[slot] == len(nodes) - 1
        assert way.nodes[slot, : len(nodes)].tolist() == nodes


def test_of_a_chain_the_first_children_are_all() -> None:
    chain = Candidates.chain((3, 1), torch.zeros(2, 3, dtype=torch.int64))
    assert first_children(chain).length.tolist() == [3, 1]


def test_a_simulation_is_of_a_length_or_a_pattern() -> None:
    assert Simulation.of(None, ()) is None
    assert Simulation.of(2.0, ()) is not None
    assert Simulation.of(None, (1,)) is not None
