"""Draws of the kernels on a GPU, from CUDA graphs, against the plain-torch sampler there."""

from typing import Any

import pytest
import torch
from torch import Tensor

from slipstream.kernels.draw import draw_tokens
from slipstream.kernels.verify_chain import commit_chunks, verify_chain
from slipstream.messages.sampling import SamplingParams
from slipstream.sampling.sampler import Sampler

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
REQUESTS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.6},
    {"top_k": 50},
    {"top_p": 0.9, "temperature": 0.8},
    {"min_p": 0.05},
    {"top_k": 2000, "top_p": 0.95, "min_p": 0.001, "temperature": 1.3},
    {"top_p": 0.999, "temperature": 2.0},
]
NEAR_TIE = 2e-6  # logarithms of two libraries may differ in the last place


def sampler_of(vocab_size: int, first_seed: int = 0) -> Sampler:
    sampler = Sampler(len(REQUESTS) + 1, vocab_size, DEVICE)
    for slot, request in enumerate(REQUESTS):
        sampler.add(slot, SamplingParams(max_new_tokens=1, seed=first_seed + slot, **request), [0], 1)
    return sampler


def assert_same(found: Tensor, scores: Tensor) -> None:
    """`found` are the maxima of the sampler's scores [rows, vocab], or as good as."""
    expected = scores.argmax(-1)
    lost = scores.amax(-1) - scores.gather(1, found[:, None])[:, 0]
    assert (lost <= NEAR_TIE).all(), f"scores below the maximum by {lost[lost > NEAR_TIE].tolist()}"
    assert (found != expected).sum() <= 1


class Captured:
    """draw_tokens in a CUDA graph."""

    def __init__(self, logits: Tensor, slots: Tensor, positions: Tensor, sampler: Sampler) -> None:
        draw_tokens(logits, slots, positions, sampler.tables())  # compiles
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._token_ids, self._is_finite = draw_tokens(logits, slots, positions, sampler.tables())

    def replay(self) -> Tensor:
        self._graph.replay()
        assert self._is_finite.all()
        return self._token_ids


@pytest.mark.parametrize("vocab_size", [32768, 131072, 100_003])
@pytest.mark.parametrize("num_rows", [1, 8, 33, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_draws_of_a_graph_are_those_of_the_sampler(vocab_size: int, num_rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(vocab_size + num_rows)
    logits = torch.empty(num_rows, vocab_size, dtype=dtype, device=DEVICE)
    slots, positions = torch.empty(2, num_rows, dtype=torch.int64, device=DEVICE)
    slots.zero_(), positions.zero_()
    logits.normal_(std=3.0)
    sampler = sampler_of(vocab_size)
    graph = Captured(logits, slots, positions, sampler)
    for step in range(4):
        logits.normal_(std=3.0)
        of_rows = [(row + step) % len(REQUESTS) for row in range(num_rows)]
        at = torch.randint(100_000, (num_rows,)).tolist()
        slots.copy_(torch.tensor(of_rows)), positions.copy_(torch.tensor(at))
        assert_same(graph.replay(), sampler.scores(logits.float().clone(), of_rows, at))


def test_a_graph_sees_requests_that_came_after_it_and_changes_no_bit() -> None:
    logits = 3 * torch.randn(9, 131072, device=DEVICE).bfloat16()
    slots, positions = torch.arange(9, device=DEVICE), torch.arange(100, 109, device=DEVICE)
    sampler = sampler_of(131072)
    graph = Captured(logits, slots, positions, sampler)
    for seed in (100, 200, 300):
        for slot, request in enumerate(REQUESTS):
            sampler.add(slot, SamplingParams(max_new_tokens=1, seed=seed + slot, **request), [0], 1)
        eager, _ = draw_tokens(logits, slots, positions, sampler.tables())
        first = graph.replay().tolist()
        assert first == eager.tolist()
        for _ in range(20):
            assert graph.replay().tolist() == first
        assert_same(eager, sampler.scores(logits.float(), list(range(9)), list(range(100, 109))))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_requests_come_and_go_without_waiting_for_the_device() -> None:
    sampler = Sampler(2, 32768, DEVICE)
    everything = SamplingParams(
        max_new_tokens=9,
        seed=1,
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.1,
        logit_bias={3: 1.0},
        min_new_tokens=2,
        stop_token_ids=(2,),
    )
    torch.cuda.set_sync_debug_mode("error")
    try:
        sampler.add(0, everything, [1, 2, 3], 2)
        sampler.release(0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_tail_of_kernels_in_a_graph_commits_what_it_drew() -> None:
    """Draw, verify and commit one after the other, again and again: no kernel overtakes the one before it."""
    num_slots, width, vocab_size = 16, 4, 32768
    sampler = Sampler(num_slots + 1, vocab_size, DEVICE)
    tables = sampler.tables()
    committed_len = torch.zeros(num_slots + 1, dtype=torch.int64, device=DEVICE)
    bonus = torch.zeros_like(committed_len)
    slots = torch.arange(num_slots, device=DEVICE)
    caps = torch.full((num_slots,), width - 1, dtype=torch.int32, device=DEVICE)
    logits = torch.zeros(num_slots * width, vocab_size, device=DEVICE, dtype=torch.bfloat16)
    drafts = torch.zeros(num_slots, width - 1, dtype=torch.int64, device=DEVICE)

    def tail() -> tuple[Tensor, Tensor]:
        row_slots = slots.repeat_interleave(width, output_size=num_slots * width)
        drawn, is_finite = draw_tokens(logits, row_slots, row_slots, tables)
        drawn, is_finite = drawn.view(-1, width), is_finite.view(-1, width)
        results, _ = verify_chain(
            drawn, is_finite, drafts, slots, caps, None, tables.keys, committed_len, bonus, num_slots
        )
        return drawn, results

    tail()
    torch.cuda.synchronize()
    committed_len.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn, results = tail()
    length = torch.zeros(num_slots, dtype=torch.int64, device=DEVICE)
    for seed in range(30):
        torch.manual_seed(seed)
        logits.normal_()
        expected = logits.float().argmax(-1).view(-1, width)
        drafts.copy_(torch.where(torch.rand(drafts.shape, device=DEVICE) < 0.7, expected[:, :-1], 5))
        graph.replay()
        accepted = (drafts == expected[:, :-1]).long().cumprod(1).sum(1)
        length += accepted + 1
        assert torch.equal(drawn, expected)
        assert torch.equal(results[:, 0].long(), accepted + 1) and results[:, 1].all()
        assert torch.equal(committed_len[:-1], length)
        assert torch.equal(bonus[:-1], expected.gather(1, accepted[:, None])[:, 0])


def test_chunks_commit_in_a_graph() -> None:
    committed_len, bonus = torch.zeros(2, 5, dtype=torch.int64, device=DEVICE)
    drawn, ends = torch.tensor([[7, 8, 9], [10, 20, 30]], device=DEVICE)
    slots = torch.tensor([2, 0, 4], device=DEVICE)
    flags = torch.tensor([True, False, True], device=DEVICE)
    arguments = (drawn, flags, slots, ends, flags, committed_len, bonus, 4)
    commit_chunks(*arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = commit_chunks(*arguments)
    ends += 1
    graph.replay()
    assert results.tolist() == [[1, 1, 7], [0, 0, 8], [1, 1, 9]]
    assert committed_len.tolist() == [21, 0, 11, 0, 0]
    assert bonus.tolist() == [0, 0, 7, 0, 0]
