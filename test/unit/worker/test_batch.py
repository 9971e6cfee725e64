"""The rows of a step, as the docstrings' worked examples say."""

import doctest
import types

import pytest
import torch

from slipstream.attention import torch_native
from slipstream.attention.paging import locate
from slipstream.hf_transformers import safetensors_header
from slipstream.messages.to_worker import PrefillChunk
from slipstream.sampling.candidates import Candidates
from slipstream.weights import name_map
from slipstream.worker import batch, kv_pool, memory, threads
from slipstream.worker.batch import build_batch
from slipstream.worker.device_state import ROWS_PAST_LIMIT, DeviceState

CPU = torch.device("cpu")


def make_state(num_slots: int = 5, context_length: int = 32) -> DeviceState:
    return DeviceState(num_slots, page_size=4, context_length=context_length, device=CPU)


def test_the_example_of_build_batch() -> None:
    state = make_state()
    state.add(0, torch.tensor([1, 2, 3, 4, 5, 31]), [7, 2], num_cached=5)
    state.bonus[0] = 31
    state.add(3, torch.tensor([11, 12, 13]), [5], num_cached=0)
    rows = build_batch(state, [0], Candidates.none(1, CPU), [PrefillChunk(3, 0, 3, True)])
    assert rows.token_ids.tolist() == [31, 11, 12, 13]
    assert rows.positions.tolist() == [5, 0, 1, 2]
    assert (rows.sampled_rows, rows.sampled_slots, rows.first_positions) == ([0, 3], [0, 3], [6, 3])
    layout = rows.layout
    assert layout.kv_rows.tolist() == [9, 20, 21, 22]
    assert (layout.num_decode, layout.num_rows, layout.kv_lens_cpu) == (1, (1, 3), (6, 3))
    assert layout.kv_lens.tolist() == [6, 3]
    assert layout.page_tables.tolist() == [[7, 2], [5, 0]]


def test_chunks_that_are_not_last_sample_nothing() -> None:
    state = make_state()
    for slot in (1, 2, 4):
        state.add(slot, torch.tensor(list(range(20))), [slot, slot + 5, slot + 10], num_cached=4)
    rows = build_batch(
        state,
        [],
        Candidates.none(0, CPU),
        [PrefillChunk(1, 4, 2, False), PrefillChunk(4, 4, 5, True), PrefillChunk(2, 4, 1, True)],
    )
    assert (rows.sampled_rows, rows.sampled_slots, rows.first_positions) == ([6, 7], [4, 2], [9, 5])
    assert rows.layout.num_decode == 0


def test_drafts_stand_after_their_bonus_token() -> None:
    """A chain at consecutive positions; a tree in consecutive cache rows, its nodes at the position of their depth."""
    state = make_state()
    for slot, bonus in ((0, 31), (2, 41)):
        state.add(slot, torch.tensor([1, 2, 3, 4, 5]), [7 + slot, 2 + slot], num_cached=5)
        state.bonus[slot] = bonus
    chunk = PrefillChunk(3, 0, 2, True)
    state.add(3, torch.tensor([11, 12]), [5], num_cached=0)
    tokens, chain = torch.tensor([[32, 33], [42, 0]]), torch.tensor([[0, 1], [0, 1]])
    rows = build_batch(state, [0, 2], Candidates((2, 1), tokens, chain, is_chain=True), [chunk])
    assert rows.token_ids.tolist() == [31, 32, 33, 41, 42, 11, 12]
    assert rows.positions.tolist() == [5, 6, 7, 5, 6, 0, 1]
    assert rows.layout.kv_rows.tolist() == [9, 10, 11, 17, 18, 20, 21]
    assert (rows.sampled_rows, rows.sampled_slots) == ([0, 1, 2, 3, 4, 6], [0, 2, 3])
    assert (rows.first_positions, rows.candidates.num_drafts) == ([6, 6, 2], (2, 1, 0))
    siblings = torch.tensor([[0, 0], [0, 0]])
    rows = build_batch(state, [0, 2], Candidates((2, 1), tokens, siblings, is_chain=False), [chunk])
    assert rows.positions.tolist() == [5, 6, 6, 5, 6, 0, 1]
    assert rows.layout.kv_rows.tolist() == [9, 10, 11, 17, 18, 20, 21]
    assert rows.layout.tree is not None and rows.layout.tree.starts == (5, 5)


def test_rows_past_the_last_page_go_to_the_sink() -> None:
    state = make_state(context_length=8)
    state.add(0, torch.tensor([1]), [3, 9], num_cached=0)
    positions = torch.arange(6, 8 + ROWS_PAST_LIMIT)
    rows = locate(state.page_tables, torch.zeros_like(positions), positions, 4).tolist()
    assert rows[:2] == [38, 39]
    assert all(row < 4 for row in rows[2:])


def test_a_slot_has_nothing_of_the_request_before() -> None:
    state = make_state()
    state.add(2, torch.tensor([1, 2, 3]), [3, 9], num_cached=2)
    state.append_pages(2, [4])
    assert state.page_tables[2].tolist()[:4] == [3, 9, 4, 0]
    state.release(2)
    state.add(2, torch.tensor([1]), [5], num_cached=0)
    assert state.page_tables[2].tolist() == [5] + [0] * (state.max_pages - 1)
    assert state.committed_len_cpu[2] == int(state.committed_len[2]) == 0
    state.append_pages(2, [7])
    assert state.page_tables[2].tolist()[:3] == [5, 7, 0]


@pytest.mark.parametrize(
    "module",
    [batch, kv_pool, memory, threads, name_map, torch_native, safetensors_header],
    ids=lambda module: module.__name__,
)
def test_docstring_examples(module: types.ModuleType) -> None:
    assert doctest.testmod(module).failed == 0
