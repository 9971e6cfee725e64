"""From a plan and the device's state to the rows of one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.attention.base import Layout
from slipstream.messages.to_worker import PrefillChunk
from slipstream.worker.device_state import DeviceState


@dataclass(frozen=True)
class Batch:
    """T rows: one for each decode slot, then those of the chunks.

    `decode_slots` is also on the device, int64. `sampled_*` describe the rows that draw a token: the decode rows and
    the last row of each last chunk.
    """

    token_ids: Tensor  # int64 [T]
    positions: Tensor  # int64 [T]
    layout: Layout
    decode_slots: Tensor  # int64
    sampled_rows: list[int]
    sampled_slots: list[int]
    sampled_positions: list[int]  # of the tokens to draw


def build_batch(state: DeviceState, decode: Sequence[int], chunks: Sequence[PrefillChunk]) -> Batch:
    """A decode slot's row is its last sampled token at position committed_len.

    Example with page_size 4: slot 0 has 5 committed tokens in pages [7, 2] and the last sampled token 31; slot 3 has
    the prompt [11, 12, 13] and page [5]. decode [0] and the chunk (slot 3, start 0, length 3, last) give
    token_ids [31, 11, 12, 13], positions [5, 0, 1, 2], kv_rows [9, 20, 21, 22], sampled_rows [0, 3],
    sampled_slots [0, 3] and sampled_positions [6, 3].
    """
    device = state.bonus.device
    decode_slots = torch.tensor(decode, dtype=torch.int64, device=device)
    token_ids, positions = state.bonus.index_select(0, decode_slots), state.committed_len.index_select(0, decode_slots)
    request_slots, row_slots, kv_lens = decode_slots, decode_slots, positions + 1
    kv_lens_cpu = [state.committed_len_cpu[slot] + 1 for slot in decode]
    if chunks:
        ends = [chunk.start + chunk.length for chunk in chunks]
        kv_lens_cpu += ends
        kv_lens = torch.cat((kv_lens, torch.tensor(ends, device=device)))
        chunk_slots = torch.tensor([chunk.slot for chunk in chunks], device=device)
        lengths = torch.tensor([chunk.length for chunk in chunks], device=device)
        request_slots = torch.cat((decode_slots, chunk_slots))
        row_slots = torch.cat((decode_slots, chunk_slots.repeat_interleave(lengths)))
        token_ids = torch.cat(
            (token_ids, *(state.prompts[chunk.slot][chunk.start : chunk.start + chunk.length] for chunk in chunks))
        )
        positions = torch.cat(
            (positions, *(torch.arange(chunk.start, chunk.start + chunk.length, device=device) for chunk in chunks))
        )
    num_columns = -(-max(kv_lens_cpu) // state.page_size)
    layout = Layout(
        num_decode=len(decode),
        num_rows=(*[1] * len(decode), *(chunk.length for chunk in chunks)),
        kv_lens=kv_lens,
        kv_lens_cpu=tuple(kv_lens_cpu),
        page_tables=state.page_tables[:, :num_columns].index_select(0, request_slots),
        kv_rows=locate(state.page_tables, row_slots, positions, state.page_size),
    )
    last_rows = {
        chunk.slot: row for chunk, row in zip(chunks, last_row_of_each(len(decode), chunks), strict=True) if chunk.last
    }
    return Batch(
        token_ids,
        positions,
        layout,
        decode_slots,
        sampled_rows=[*range(len(decode)), *last_rows.values()],
        sampled_slots=[*decode, *last_rows],
        sampled_positions=kv_lens_cpu[: len(decode)] + [chunk.start + chunk.length for chunk in chunks if chunk.last],
    )


def last_row_of_each(num_decode: int, chunks: Sequence[PrefillChunk]) -> list[int]:
    """The step's row where each chunk ends.

    >>> last_row_of_each(2, [PrefillChunk(0, 0, 3, True), PrefillChunk(1, 4, 2, True)])
    [4, 6]
    """
    rows, end = [], num_decode
    for chunk in chunks:
        end += chunk.length
        rows.append(end - 1)
    return rows


def locate(page_tables: Tensor, slots: Tensor, positions: Tensor, page_size: int) -> Tensor:
    """int64 [T]: page * page_size + offset of each position.

    With page_size 4 and the page table [7, 2] for slot 0, positions [1, 5] of slots [0, 0] give [29, 9].
    """
    columns = positions.div(page_size, rounding_mode="floor")
    pages = page_tables.view(-1).index_select(0, slots * page_tables.shape[1] + columns)
    return pages * page_size + (positions - columns * page_size)


def scored_rows(chunk: PrefillChunk, prompt_len: int, first_position: int) -> range:
    """Which of a chunk's positions score a wanted prompt token: position p scores the token at p + 1.

    >>> scored_rows(PrefillChunk(0, 0, 4, False), prompt_len=6, first_position=0)  # tokens 1, 2, 3, 4
    range(0, 4)
    >>> scored_rows(PrefillChunk(0, 4, 2, True), prompt_len=6, first_position=0)  # token 5; 6 is not of the prompt
    range(4, 5)
    >>> scored_rows(PrefillChunk(0, 0, 4, False), prompt_len=6, first_position=3)  # tokens 3 and 4
    range(2, 4)
    """
    begin = max(chunk.start, first_position - 1)
    end = min(chunk.start + chunk.length, prompt_len - 1)
    return range(begin, max(begin, end))
