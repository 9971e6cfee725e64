"""Chunks of prompts in one forward pass: device work only, for a fixed number of rows where a CUDA graph holds it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from slipstream.attention.base import DeviceAttention, DeviceRows, Layout
from slipstream.attention.paging import make_layout
from slipstream.kernels.draw import draw_tokens
from slipstream.kernels.rows import chunk_rows
from slipstream.kernels.verify_chain import commit_chunks
from slipstream.layers.upload import upload_into
from slipstream.messages.to_worker import PrefillChunk
from slipstream.worker.batch import last_row_of_each
from slipstream.worker.device_parts import DeviceParts

BLOCK_ROWS = 16  # rows of a prompt that attend together


@dataclass(frozen=True)
class PrefillShape:
    """Room for so many rows, requests and blocks of rows."""

    num_rows: int
    num_requests: int

    @property
    def num_blocks(self) -> int:
        """Enough however the rows are divided among the requests.

        >>> PrefillShape(num_rows=64, num_requests=3).num_blocks
        7
        """
        return self.num_rows // BLOCK_ROWS + self.num_requests

    @staticmethod
    def of(chunks: Sequence[PrefillChunk]) -> "PrefillShape":
        """Just enough for `chunks`."""
        return PrefillShape(sum(chunk.length for chunk in chunks), len(chunks))

    @property
    def padded(self) -> "PrefillShape":
        """With room for a usual number of requests: kernels that are compiled for a number of rows are there for it.

        >>> PrefillShape(num_rows=3000, num_requests=3).padded
        PrefillShape(num_rows=3000, num_requests=4)
        """
        return PrefillShape(self.num_rows, triton.next_power_of_2(self.num_requests))

    def holds(self, other: "PrefillShape") -> bool:
        return other.num_rows <= self.num_rows and other.num_requests <= self.num_requests


class PrefillProgram:
    """A step over chunks of prompts; `extends`: the draft runs over them too.

    load() says which, run() launches everything, and then `results`, int32 [num_requests, 3], holds for each chunk
    whether it has drawn a token, whether all is finite, and the token. Rows and requests that are not given are the
    dummy slot's.
    """

    def __init__(self, parts: DeviceParts, shape: PrefillShape, extends: bool) -> None:
        self.parts, self.shape, self.extends = parts, shape, extends
        num_inputs = 4 * (shape.num_rows + 1) + 5 * shape.num_requests + 2 * shape.num_blocks
        self._inputs = torch.empty(num_inputs, dtype=torch.int64, device=parts.device)
        self._of_rows, self._of_requests, self._of_blocks = self._sections(self._inputs)
        self._layout: Layout | None = None
        self.results = torch.zeros(shape.num_requests, 3, dtype=torch.int32, device=parts.device)

    def load(self, chunks: Sequence[PrefillChunk], prompts: Mapping[int, Tensor]) -> None:
        """`prompts`: the known tokens of each slot, int64 on the host. Everything goes to the device in one copy."""
        shape, dummy = self.shape, self.parts.state.dummy_slot
        inputs = torch.zeros(self._inputs.shape, dtype=torch.int64)
        of_rows, of_requests, of_blocks = self._sections(inputs)
        token_ids, positions, row_slots, successors = of_rows
        row_slots.fill_(dummy)
        of_requests[0].fill_(dummy)
        of_requests[4].fill_(shape.num_rows)
        begin = 0
        for chunk in chunks:
            end, rows = chunk.start + chunk.length, slice(begin, begin + chunk.length)
            own = prompts[chunk.slot][chunk.start : end + 1]  # with the token after the chunk, if it is known
            token_ids[rows] = own[: chunk.length]
            positions[rows] = torch.arange(chunk.start, end)
            row_slots[rows] = chunk.slot
            known = chunk.length - chunk.last  # the last row's successor will be drawn
            successors[begin : begin + known] = own[1 : known + 1]
            begin += chunk.length
        last_rows = last_row_of_each(0, chunks)
        samples = [int(chunk.last) for chunk in chunks]
        ends = [chunk.start + chunk.length for chunk in chunks]
        drawn_rows = [row if chunk.last else shape.num_rows for chunk, row in zip(chunks, last_rows, strict=True)]
        slots = [chunk.slot for chunk in chunks]
        values = [slots, last_rows, ends, samples, drawn_rows]
        of_requests[:, : len(chunks)] = torch.tensor(values, dtype=torch.int64)
        of_blocks.copy_(torch.tensor(blocks_of(chunks, shape.num_blocks), dtype=torch.int32))
        upload_into(self._inputs, inputs)

    def plan_on_host(self, chunks: Sequence[PrefillChunk]) -> None:
        """Let the attention backend know all lengths, for its kernels for long chunks; the program is then to run for
        these chunks only.
        """
        state = self.parts.state
        starts, lengths = [chunk.start for chunk in chunks], [chunk.length for chunk in chunks]
        slots = [chunk.slot for chunk in chunks]
        self._layout, _ = make_layout(state.page_tables, state.page_size, slots, starts, lengths, 0)

    def run(self) -> None:
        """Forward, draw, commit, extend the draft."""
        parts, state, num_rows = self.parts, self.parts.state, self.shape.num_rows
        token_ids, positions, row_slots = (each[:num_rows] for each in self._of_rows[:3])
        slots, last_rows, ends, samples, drawn_rows = self._of_requests
        rows = None if self._layout is not None else self._rows(positions, row_slots)
        self._plan(parts.attention, rows)
        kept_rows = None if self.extends else last_rows  # a draft reads the hidden states of all rows
        hidden = parts.model.forward(parts.model.embed(token_ids), positions, parts.attention, kept_rows)
        last_hidden = hidden if kept_rows is not None else hidden.index_select(0, last_rows)
        logits = parts.model.compute_logits(last_hidden, widen=False)
        drawn, is_finite = draw_tokens(logits, slots, ends, parts.tables)
        results = commit_chunks(
            drawn, is_finite, slots, ends, samples != 0, state.committed_len, state.bonus, state.dummy_slot
        )
        self.results.copy_(results)
        if self.extends:
            assert parts.chain is not None
            self._plan(parts.chain.attention, rows)
            successors = self._of_rows[3].index_copy(0, drawn_rows, drawn)[:num_rows]
            parts.chain.extend(positions, successors, hidden, slots, last_rows)

    def _sections(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of rows, int64 [4, num_rows + 1]: token id, position, slot, successor. Of requests, int64 [5, num_requests]:
        slot, last row, end, whether it draws, and the row whose successor is drawn. Of blocks: see blocks_of(), int32.
        """
        end_of_rows = 4 * (self.shape.num_rows + 1)
        end_of_requests = end_of_rows + 5 * self.shape.num_requests
        of_blocks = inputs[end_of_requests:].view(torch.int32)[: 3 * self.shape.num_blocks]
        return inputs[:end_of_rows].view(4, -1), inputs[end_of_rows:end_of_requests].view(5, -1), of_blocks.view(3, -1)

    def _plan(self, attention: DeviceAttention, rows: DeviceRows | None) -> None:
        """By the device's own lengths, `rows`, or by those of plan_on_host()."""
        if rows is not None:
            attention.plan_rows(rows)
        else:
            assert self._layout is not None
            attention.plan(self._layout)

    def _rows(self, positions: Tensor, row_slots: Tensor) -> DeviceRows:
        state = self.parts.state
        return DeviceRows(
            page_tables=state.page_tables,
            positions=positions,
            kv_rows=chunk_rows(row_slots, positions, state.page_tables, state.page_size),
            block_slots=self._of_blocks[0],
            block_starts=self._of_blocks[1],
            block_sizes=self._of_blocks[2],
            rows_per_block=BLOCK_ROWS,
            max_kv_len=self.parts.max_kv_len,
        )


def blocks_of(chunks: Sequence[PrefillChunk], num_blocks: int) -> list[list[int]]:
    """Slot, first row and number of rows of each block; empty blocks at the end.

    >>> blocks_of([PrefillChunk(5, 0, 20, True), PrefillChunk(3, 8, 2, False)], 4)
    [[5, 5, 3, 0], [0, 16, 20, 0], [16, 4, 2, 0]]
    """
    blocks: list[tuple[int, int, int]] = []
    begin = 0
    for chunk in chunks:
        for first in range(0, chunk.length, BLOCK_ROWS):
            blocks.append((chunk.slot, begin + first, min(BLOCK_ROWS, chunk.length - first)))
        begin += chunk.length
    blocks += [(0, 0, 0)] * (num_blocks - len(blocks))
    return [list(each) for each in zip(*blocks, strict=True)]
