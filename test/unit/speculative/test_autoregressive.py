"""Drafted chains and trees equal what the draft, recomputed from nothing along every path, predicts."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from slipstream.config.drafting import DraftShape
from slipstream.messages.sampling import SamplingParams
from support.speculator_harness import GREEDY, SpeculatorHarness, node_paths, path_of

Pairs = dict[str, tuple[Path, Path]]
KINDS = ["GQA", "windows", "MLA", "MLA with experts"]
SAMPLED = SamplingParams(max_new_tokens=64, seed=5, temperature=1.0, top_k=20, frequency_penalty=1.5)
FLAT = SamplingParams(max_new_tokens=64, seed=6, temperature=3.0, repetition_penalty=1.3, logit_bias={4: 2.0})


def expected_chain(harness: SpeculatorHarness, slot: int, depth: int) -> list[int]:
    path: list[int] = []
    for _ in range(depth):
        path.append(int(harness.expected_scores(slot, path).argmax()))
    return path


def expected_tree(harness: SpeculatorHarness, slot: int, shape: DraftShape, depth: int) -> dict[tuple[int, ...], float]:
    """The paths of EAGLE-2's tree with their scores, best first, each node's probabilities from its path as a chain."""
    scores: dict[tuple[int, ...], float] = {}
    frontier: list[tuple[int, ...]] = [()]
    for _ in range(depth):
        level: dict[tuple[int, ...], float] = {}
        for path in frontier:
            log_probs = harness.expected_scores(slot, path)[0].log_softmax(0)
            for token in log_probs.argsort(descending=True)[: shape.topk].tolist():
                level[(*path, token)] = scores.get(path, 0.0) + float(log_probs[token])
        scores |= level
        frontier = sorted(level, key=lambda path: -level[path])[: shape.topk]
    best = sorted(scores, key=lambda path: -scores[path])[: shape.num_nodes]
    return {path: scores[path] for path in best}


def accept(harness: SpeculatorHarness, rounds: Sequence[tuple[int, Sequence[int]]]) -> None:
    """For each (slot, drafts) they are committed with a bonus token."""
    for slot, drafts in rounds:
        harness.lengthen(slot, [*drafts, *harness.random_tokens(1)])
    harness.extend(decode=[slot for slot, _ in rounds])


@pytest.mark.parametrize("kind", KINDS)
def test_chains_through_rejections(pairs: Pairs, kind: str) -> None:
    """Ragged depths, and rows of rejected drafts that true ones replace."""
    harness = SpeculatorHarness(*pairs[kind], DraftShape(depth=4, topk=1, num_nodes=4))
    for slot, (length, params) in enumerate([(9, GREEDY), (3, SAMPLED), (14, FLAT), (5, GREEDY)]):
        harness.prefill(slot, length, params)
    slots, numbers = [3, 0, 2, 1], torch.Generator().manual_seed(1)
    for depths in ([4, 4, 4, 4], [1, 4, 0, 3], [0, 0, 0, 0], [2, 2, 4, 1]):
        candidates = harness.speculator.propose(slots, depths)
        assert candidates.num_drafts == tuple(depths)
        assert candidates.is_chain
        assert candidates.draft_probs is None
        rounds = []
        for row, (slot, depth) in enumerate(zip(slots, depths, strict=True)):
            drafts = candidates.token_ids[row, :depth].tolist()
            assert drafts == expected_chain(harness, slot, depth)
            assert candidates.parents[row, :depth].tolist() == list(range(depth))
            num_accepted = int(torch.randint(0, depth + 1, (), generator=numbers))
            rounds.append((slot, drafts[:num_accepted]))
        accept(harness, rounds)


@pytest.mark.parametrize(
    "shape",
    [DraftShape(depth=3, topk=2, num_nodes=5), DraftShape(4, 3, 12), DraftShape(2, 4, 20), DraftShape(1, 3, 2)],
    ids=lambda shape: f"depth {shape.depth} topk {shape.topk} nodes {shape.num_nodes}",
)
@pytest.mark.parametrize("kind", KINDS)
def test_trees_through_rejections(pairs: Pairs, kind: str, shape: DraftShape) -> None:
    harness = SpeculatorHarness(*pairs[kind], shape)
    for slot, (length, params) in enumerate([(7, GREEDY), (3, SAMPLED), (11, FLAT), (4, GREEDY)]):
        harness.prefill(slot, length, params)
    slots = [2, 0, 3, 1]
    for ragged in ([0, 1, 2, 0], [3, 0, 1, 2]):
        depths = [max(shape.depth - less, 0) for less in ragged]
        candidates = harness.speculator.propose(slots, depths)
        assert not candidates.is_chain or not any(depths)
        assert candidates.num_drafts == tuple(map(shape.nodes, depths))
        rounds = []
        for row, (slot, depth) in enumerate(zip(slots, depths, strict=True)):
            paths = node_paths(candidates, row)
            assert len(set(paths)) == len(paths)
            assert set(paths) == set(expected_tree(harness, slot, shape, depth))
            rounds.append((slot, paths[-1][:-1] if paths else ()))
        accept(harness, rounds)


def test_siblings_come_likeliest_first(pairs: Pairs) -> None:
    shape = DraftShape(depth=3, topk=3, num_nodes=15)
    harness = SpeculatorHarness(*pairs["GQA"], shape)
    harness.prefill(1, 6)
    paths = node_paths(harness.speculator.propose([1], [3]), 0)
    scores = expected_tree(harness, 1, shape, 3)
    for parent in {path[:-1] for path in paths}:
        siblings = [scores[path] for path in paths if path[:-1] == parent]
        assert siblings == sorted(siblings, reverse=True)


def test_a_filter_that_leaves_fewer_tokens_than_topk(pairs: Pairs) -> None:
    """Nodes of probability 0 fill the tree up, but never take the place of others."""
    shape = DraftShape(depth=3, topk=4, num_nodes=20)
    harness = SpeculatorHarness(*pairs["GQA"], shape)
    harness.prefill(0, 6, SamplingParams(max_new_tokens=9, seed=3, temperature=1.0, top_k=2))
    candidates = harness.speculator.propose([0], [3])
    paths = node_paths(candidates, 0)
    possible = [path for path, score in expected_tree(harness, 0, shape, 3).items() if score > -torch.inf]
    assert len(set(paths)) == len(paths) == 20
    assert len(possible) == 2 + 4 + 8
    assert set(possible) <= set(paths)


def test_a_released_slot_starts_afresh(pairs: Pairs) -> None:
    harness = SpeculatorHarness(*pairs["GQA"], DraftShape(depth=3, topk=1, num_nodes=3))
    harness.prefill(0, 20)
    harness.prefill(1, 8)
    harness.speculator.propose([0, 1], [3, 3])
    harness.release(0)
    harness.prefill(0, 5, SAMPLED)
    candidates = harness.speculator.propose([1, 0], [3, 3])
    assert candidates.token_ids.tolist() == [expected_chain(harness, slot, 3) for slot in (1, 0)]


def test_nothing_is_known_of_slots_without_depth(pairs: Pairs) -> None:
    harness = SpeculatorHarness(*pairs["GQA"], DraftShape(depth=3, topk=1, num_nodes=3))
    harness.prefill(4, 5)
    candidates = harness.speculator.propose([0, 4, 1], [0, 2, 0])
    assert candidates.num_drafts == (0, 2, 0)
    assert candidates.token_ids[1].tolist() == expected_chain(harness, 4, 2)
    nothing = harness.speculator.propose([0, 1], [0, 0])
    assert (nothing.num_drafts, nothing.token_ids.shape) == ((0, 0), (2, 0))


def test_rejection_sampling_keeps_what_drafts_were_drawn_from(pairs: Pairs) -> None:
    harness = SpeculatorHarness(*pairs["GQA"], DraftShape(depth=3, topk=1, num_nodes=3), rejection=True)
    harness.prefill(0, 5, GREEDY)
    harness.prefill(1, 6, SAMPLED)
    slots, depths = [0, 1], [1, 3]
    candidates = harness.speculator.propose(slots, depths)
    assert candidates.draft_probs is not None
    for row, (slot, depth) in enumerate(zip(slots, depths, strict=True)):
        drafts = candidates.token_ids[row, :depth].tolist()
        for step in range(depth):
            logits = harness.expected_logits(slot, drafts[:step])
            position = harness.state.committed_len_cpu[slot] + 1 + step
            paths = path_of(drafts[:step])
            drawn, expected = harness.samplers[1].propose(logits, [slot], [position], paths)
            assert expected is not None
            assert int(drawn) == drafts[step]
            torch.testing.assert_close(candidates.draft_probs[row, step], expected[0], atol=1e-5, rtol=0)
        assert not candidates.draft_probs[row, depth:].any()
