"""Verification of chains and its commit against loops written from the rule."""

import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from slipstream.kernels.launch import IS_INTERPRETED
from slipstream.kernels.verify_chain import commit_chunks, verify_chain
from slipstream.messages.sampling import SamplingParams
from slipstream.sampling.candidates import Candidates
from slipstream.sampling.sampler import Sampler
from slipstream.sampling.simulated import Simulation
from slipstream.sampling.verifier import Verifier

DEVICE = torch.device("cpu" if IS_INTERPRETED else "cuda")
VOCAB = 11
NUM_SLOTS = 9  # and the dummy slot after them


@dataclass
class Case:
    """B slots of M rows each, in random states; drafts are often what is drawn."""

    num_slots: int
    width: int

    def __post_init__(self) -> None:
        self.slots = random.sample(range(NUM_SLOTS), self.num_slots)
        self.drawn = [[random.randrange(VOCAB) for _ in range(self.width)] for _ in self.slots]
        self.drafts = [
            [t if random.random() < 0.7 else random.randrange(VOCAB) for t in row[:-1]] for row in self.drawn
        ]
        self.is_finite = [[random.random() < 0.9 for _ in row] for row in self.drawn]
        self.caps = [random.randrange(self.width) if random.random() < 0.3 else 99 for _ in self.slots]
        self.committed_len = [random.randrange(1000) for _ in range(NUM_SLOTS)] + [0]
        self.bonus = [random.randrange(VOCAB) for _ in range(NUM_SLOTS + 1)]


def int64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=DEVICE)


def run(case: Case, keys: Tensor, simulated: float | None) -> tuple[Tensor, Tensor, list[int], list[int]]:
    """Results, successors, lengths and bonus tokens after the kernel."""
    committed_len, bonus = int64(case.committed_len), int64(case.bonus)
    results, successors = verify_chain(
        int64(case.drawn),
        torch.tensor(case.is_finite, device=DEVICE),
        int64(case.drafts).view(case.num_slots, case.width - 1),
        int64(case.slots),
        torch.tensor(case.caps, dtype=torch.int32, device=DEVICE),
        simulated,
        keys,
        committed_len,
        bonus,
        NUM_SLOTS,
    )
    assert results.dtype == torch.int32 and successors.dtype == torch.int64
    assert ((successors >= 0) & (successors < VOCAB)).all()
    return results, successors, committed_len.tolist(), bonus.tolist()


def assert_outcome(case: Case, accepted: list[int], outcome: tuple[Tensor, Tensor, list[int], list[int]]) -> None:
    """That so many drafts of each slot were accepted and committed, with the token drawn after them."""
    results, successors, lengths, bonus = outcome
    expected_len, expected_bonus = list(case.committed_len), list(case.bonus)
    for b, (slot, count) in enumerate(zip(case.slots, accepted, strict=True)):
        tokens = [*case.drafts[b][:count], case.drawn[b][count]]
        found = results[b].tolist()
        assert found[: count + 3] == [count + 1, all(case.is_finite[b][: count + 1]), *tokens]
        assert successors[b, : count + 1].tolist() == tokens
        expected_len[slot] += count + 1
        expected_bonus[slot] = tokens[-1]
    assert (lengths, bonus) == (expected_len, expected_bonus)


def accepted_by_the_rule(case: Case) -> list[int]:
    counts = []
    for drawn, drafts, cap in zip(case.drawn, case.drafts, case.caps, strict=True):
        count = 0
        while count < len(drafts) and drafts[count] == drawn[count] and count < cap:
            count += 1
        counts.append(count)
    return counts


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 64])
def test_the_exact_rule(width: int) -> None:
    random.seed(width)
    keys = int64([0] * (NUM_SLOTS + 1))
    for num_slots in (1, 4, 9, 7, 9, 9):
        case = Case(num_slots, width)
        assert_outcome(case, accepted_by_the_rule(case), run(case, keys, None))


def simulated_by_the_verifier(case: Case, sampler: Sampler, mean_length: float) -> list[int]:
    """Drafts that the plain-torch verifier accepts; a slot has as many as its cap says."""
    counts = [min(cap, case.width - 1) for cap in case.caps]
    candidates = Candidates.chain(counts, int64(case.drafts).view(case.num_slots, case.width - 1))
    firsts = [case.committed_len[slot] + 1 for slot in case.slots]
    logits = torch.randn(candidates.num_rows, VOCAB, device=DEVICE)
    verifier = Verifier(sampler, Simulation(mean_length, ()))
    return [n - 1 for n in verifier.verify(logits, case.slots, firsts, candidates).num_tokens.tolist()]


@pytest.mark.parametrize("mean_length", [1.0, 1.75, 2.5, 3.0, 9.5])
def test_simulated_acceptance_is_that_of_the_verifier(mean_length: float) -> None:
    random.seed(3)
    sampler = Sampler(NUM_SLOTS + 1, VOCAB, DEVICE)
    for slot in range(NUM_SLOTS):
        sampler.add(slot, SamplingParams(max_new_tokens=1, seed=random.getrandbits(64), temperature=0.0), [0], 1)
    for _ in range(5):
        case = Case(9, 4)
        expected = simulated_by_the_verifier(case, sampler, mean_length)
        assert_outcome(case, expected, run(case, sampler.tables().keys, mean_length))


def test_nothing_of_the_dummy_slot_changes() -> None:
    random.seed(5)
    case = Case(3, 4)
    case.slots[1:] = [NUM_SLOTS, NUM_SLOTS]
    _, _, lengths, bonus = run(case, int64([0] * (NUM_SLOTS + 1)), None)
    assert (lengths[NUM_SLOTS], bonus[NUM_SLOTS]) == (0, case.bonus[NUM_SLOTS])
    assert lengths[case.slots[0]] > case.committed_len[case.slots[0]]


@pytest.mark.parametrize("count", [1, 3, 8, 200])
def test_chunks_commit_their_end_and_perhaps_a_token(count: int) -> None:
    random.seed(count)
    dummy = count - count // 4
    slots = [*random.sample(range(dummy), dummy), *[dummy] * (count - dummy)]
    drawn, ends = ([random.randrange(1000) for _ in slots] for _ in range(2))
    samples, is_finite = ([random.random() < 0.5 for _ in slots] for _ in range(2))
    before = [list(range(dummy + 1)), list(range(100, dummy + 101))]
    committed_len, bonus = int64(before[0]), int64(before[1])
    flags = (torch.tensor(flag, device=DEVICE) for flag in (is_finite, samples))
    finite, sampling = flags
    results = commit_chunks(int64(drawn), finite, int64(slots), int64(ends), sampling, committed_len, bonus, dummy)
    for row, slot in enumerate(slots):
        assert results[row].tolist() == [samples[row], is_finite[row], drawn[row]]
        if slot != dummy:
            before[0][slot] = ends[row]
            before[1][slot] = drawn[row] if samples[row] else before[1][slot]
    assert [committed_len.tolist(), bonus.tolist()] == before
