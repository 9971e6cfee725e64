"""Prompt lookup equals a search through the whole text."""

import random

import pytest
import torch

from slipstream.config.drafting import DraftShape
from slipstream.config.processes import WorkerDrafts
from slipstream.models.base import CausalLM
from slipstream.sampling.sampler import Sampler
from slipstream.speculative.base import Committed, SlotState
from slipstream.speculative.ngram import NgramSpeculator
from slipstream.speculative.ngram_index import NgramIndex
from slipstream.speculative.parts import SpeculatorParts

CPU = torch.device("cpu")
VOCAB_SIZE = 50
DRAFTS = WorkerDrafts("NGRAM", DraftShape(4, 1, 4), 2, ngram_min=2, ngram_max=3)


class Unused:
    """A part that prompt lookup has no use for."""


def speculator(drafts: WorkerDrafts = DRAFTS) -> NgramSpeculator:
    unused: list[object] = [Unused(), Unused()]
    state: SlotState = unused[0]  # type: ignore[assignment]
    target: CausalLM = unused[1]  # type: ignore[assignment]
    sampler = Sampler(4, VOCAB_SIZE, CPU)
    return NgramSpeculator(SpeculatorParts(drafts, state, sampler, target, 4, VOCAB_SIZE, CPU, torch.float32))


def extend(lookup: NgramSpeculator, successors: dict[int, list[int]]) -> None:
    """Each slot has got rows with these successors."""
    tokens = [token for added in successors.values() for token in added]
    counts = tuple(len(added) for added in successors.values())
    hidden = torch.zeros(len(tokens), 1)
    lookup.extend(
        Committed(tuple(successors), (0,) * len(counts), counts, len(counts), torch.tensor(tokens), None, hidden)
    )


def search(text: list[int], shortest: int, longest: int, count: int) -> list[int]:
    """Look at every earlier place, latest first, for the longest end of the text; a copy may run into itself."""
    for length in range(longest, shortest - 1, -1):
        for begin in range(len(text) - length - 1, -1, -1):
            if text[begin : begin + length] == text[len(text) - length :]:
                copy = list(text)
                for offset in range(count):
                    copy.append(copy[begin + length + offset])
                return copy[len(text) :]
    return []


@pytest.mark.parametrize("lengths", [(1, 1), (2, 5), (3, 3)])
@pytest.mark.parametrize("alphabet", [1, 2, 4, 30])
def test_index_equals_a_search(lengths: tuple[int, int], alphabet: int) -> None:
    numbers = random.Random(alphabet)
    for _ in range(10):
        index, text = NgramIndex(*lengths), []
        for _ in range(25):
            new = [numbers.randrange(alphabet) for _ in range(numbers.randrange(4))]
            index.append(new)
            text += new
            count = numbers.randrange(1, 6)
            assert index.continuation(count) == search(text, *lengths, count)


def test_ragged_depths_and_slots_without_a_match() -> None:
    lookup = speculator()
    lookup.add(0, [1, 2, 3, 4, 5, 6, 1])
    lookup.add(2, [7, 8, 9])
    lookup.add(3, [4, 4, 4])
    extend(lookup, {0: [2], 2: [10]})
    candidates = lookup.propose([3, 1, 2, 0], [4, 0, 3, 2])
    assert candidates.num_drafts == (4, 0, 0, 2)
    assert candidates.token_ids.shape == candidates.parents.shape == (4, 4)
    assert candidates.token_ids[0].tolist() == [4, 4, 4, 4]
    assert candidates.token_ids[3, :2].tolist() == [3, 4]
    assert candidates.parents[0].tolist() == [0, 1, 2, 3]
    assert candidates.is_chain
    assert candidates.draft_probs is None


def test_no_match_anywhere_is_no_draft() -> None:
    lookup = speculator()
    lookup.add(0, [1, 2, 3])
    for slots in ([0, 1], []):
        candidates = lookup.propose(slots, [4, 0][: len(slots)])
        assert candidates.num_drafts == (0,) * len(slots)
        assert candidates.token_ids.shape == (len(slots), 0)


def test_a_released_slot_forgets_its_text() -> None:
    lookup = speculator()
    lookup.add(1, [1, 2, 3, 1, 2])
    assert lookup.propose([1], [1]).num_drafts == (1,)
    lookup.release(1)
    lookup.add(1, [1, 2])
    assert lookup.propose([1], [1]).num_drafts == (0,)
