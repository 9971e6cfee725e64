"""Positions and cache rows against plain Python."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.attention.paging import locate
from slipstream.kernels.launch import IS_INTERPRETED
from slipstream.kernels.rows import chunk_rows, chunk_rows_reference, decode_rows, decode_rows_reference

DEVICE = "cpu" if IS_INTERPRETED else "cuda"


def int64(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64, device=DEVICE)


def tables_of(tables: list[list[int]]) -> torch.Tensor:
    return torch.tensor(tables, dtype=torch.int32, device=DEVICE)


def decode(
    slots: list[int], committed_len: list[int], tables: list[list[int]], rows_per_slot: int, page_size: int
) -> tuple[list[int], list[int]]:
    """Through the kernel, into buffers that held something; the plain-torch version must agree."""
    positions, kv_rows = (torch.full((len(slots) * rows_per_slot,), -7, device=DEVICE) for _ in range(2))
    inputs = int64(slots), int64(committed_len), tables_of(tables), rows_per_slot, page_size
    decode_rows(*inputs, positions, kv_rows)
    reference = decode_rows_reference(*inputs)
    assert torch.equal(positions, reference[0]) and torch.equal(kv_rows, reference[1])
    return positions.tolist(), kv_rows.tolist()


@pytest.mark.parametrize(
    ("slots", "rows_per_slot", "page_size", "positions", "kv_rows"),
    [
        ([0], 1, 4, [6], [10]),
        ([0], 3, 4, [6, 7, 8], [10, 11, 2]),  # the third is beyond the table of 2 pages
        ([0], 3, 2, [6, 7, 8], [0, 1, 0]),  # 2 pages of 2 tokens: all beyond
        ([1, 0], 2, 4, [3, 4, 6, 7], [23, 0, 10, 11]),  # slot 1 has one page so far: position 4 is in the sink
        ([2, 2], 2, 4, [0, 1, 0, 1], [0, 1, 0, 1]),  # the dummy slot: all in the sink
    ],
)
def test_worked_decode_rows(
    slots: list[int], rows_per_slot: int, page_size: int, positions: list[int], kv_rows: list[int]
) -> None:
    tables = [[7, 2], [5, 0], [0, 0]]
    assert decode(slots, [6, 3, 0], tables, rows_per_slot, page_size) == (positions, kv_rows)


def test_worked_chunk_rows() -> None:
    inputs = int64([0, 0, 0, 1, 1]), int64([1, 5, 10, 0, 8]), tables_of([[7, 2], [5, 3]]), 4
    assert chunk_rows(*inputs).tolist() == [29, 9, 2, 20, 0]
    assert chunk_rows_reference(*inputs).tolist() == [29, 9, 2, 20, 0]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_every_row_is_where_the_table_says(data: st.DataObject) -> None:
    page_size, width, num_slots = (data.draw(st.integers(1, most)) for most in (5, 4, 4))
    a_length = st.integers(0, page_size * width + 3)
    committed_len = data.draw(st.lists(a_length, min_size=num_slots, max_size=num_slots))
    a_table = st.lists(st.integers(0, 2**28), min_size=width, max_size=width)
    tables = data.draw(st.lists(a_table, min_size=num_slots, max_size=num_slots))
    slots = data.draw(st.lists(st.integers(0, num_slots - 1), min_size=1, max_size=60))
    rows_per_slot = data.draw(st.integers(1, 5))
    positions, kv_rows = decode(slots, committed_len, tables, rows_per_slot, page_size)
    row_slots = [slot for slot in slots for _ in range(rows_per_slot)]
    for index, (slot, position, kv_row) in enumerate(zip(row_slots, positions, kv_rows, strict=True)):
        step = index % rows_per_slot
        assert position == committed_len[slot] + step
        page, offset = divmod(position, page_size)
        assert kv_row == (tables[slot][page] * page_size + offset if page < width else step % page_size)
    inputs = int64(row_slots), int64(positions), tables_of(tables), page_size
    chunk = chunk_rows(*inputs)
    assert torch.equal(chunk, chunk_rows_reference(*inputs))
    inside = [index for index, position in enumerate(positions) if position < page_size * width]
    if inside:
        found = locate(inputs[2], inputs[0][inside], inputs[1][inside], page_size)
        assert chunk[inside].tolist() == found.tolist() == [kv_rows[index] for index in inside]
    assert all(0 <= chunk[index] < page_size for index in range(len(positions)) if index not in inside)


def test_no_rows() -> None:
    empty = int64([])
    decode_rows(empty, int64([1]), tables_of([[1]]), 2, 4, int64([]), int64([]))
    assert chunk_rows(empty, empty, tables_of([[1]]), 4).shape == (0,)


def test_buffers_of_the_wrong_size() -> None:
    with pytest.raises(AssertionError):
        decode_rows(int64([0]), int64([1]), tables_of([[1]]), 2, 4, int64([0]), int64([0]))
