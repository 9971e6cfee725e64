"""From a plan and the device's state to the rows of one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.attention.base import Layout, Tree
from slipstream.attention.paging import make_layout, tree_positions
from slipstream.messages.to_worker import PrefillChunk
from slipstream.sampling.candidates import Candidates
from slipstream.worker.device_state import DeviceState


@dataclass(frozen=True)
class Batch:
    """T rows: for each decode slot its bonus token and its drafts, then those of the chunks.

    `sampled_*` describe the slots that draw tokens: the decode slots, then those whose last chunk is here. They draw
    from `sampled_rows`: all rows of a decode slot, and the last row of a last chunk; `candidates` says which is which,
    with no drafts for the chunks.
    """

    token_ids: Tensor  # int64 [T]
    positions: Tensor  # int64 [T]: for the rotary embedding
    layout: Layout
    num_decode_rows: int
    candidates: Candidates  # of sampled_slots
    sampled_rows: list[int]
    sampled_slots: list[int]
    first_positions: list[int]  # of the token that each sampled slot's first row draws


def build_batch(
    state: DeviceState, decode: Sequence[int], candidates: Candidates, chunks: Sequence[PrefillChunk]
) -> Batch:
    """`candidates` are those of the decode slots. A slot's first row is its bonus token at position committed_len.

    Example with page_size 4 and no drafts: slot 0 has 5 committed tokens in pages [7, 2] and the bonus token 31; slot 3
    has the prompt [11, 12, 13] and page [5]. decode [0] and the chunk (slot 3, start 0, length 3, last) give
    token_ids [31, 11, 12, 13], positions [5, 0, 1, 2], kv_rows [9, 20, 21, 22], sampled_rows [0, 3],
    sampled_slots [0, 3] and first_positions [6, 3].
    """
    device = state.bonus.device
    bonus = state.bonus.index_select(0, torch.tensor(decode, dtype=torch.int64, device=device))
    parts = [candidates.flat_token_ids(bonus)]
    parts += [state.prompt(chunk.slot)[chunk.start : chunk.start + chunk.length] for chunk in chunks]
    starts = [state.committed_len_cpu[slot] for slot in decode]
    num_rows = [1 + count for count in candidates.num_drafts]
    num_decode_rows = sum(num_rows)
    tree = None if candidates.is_chain else Tree(tuple(starts), candidates.ancestors)
    layout, positions = make_layout(
        state.page_tables,
        state.page_size,
        [*decode, *(chunk.slot for chunk in chunks)],
        [*starts, *(chunk.start for chunk in chunks)],
        [*num_rows, *(chunk.length for chunk in chunks)],
        len(decode),
        tree,
    )
    ends = last_row_of_each(num_decode_rows, chunks)
    last_rows = {chunk.slot: row for chunk, row in zip(chunks, ends, strict=True) if chunk.last}
    return Batch(
        token_ids=torch.cat(parts) if len(parts) > 1 else parts[0],
        positions=positions if tree is None else tree_positions(layout, positions),
        layout=layout,
        num_decode_rows=num_decode_rows,
        candidates=candidates.with_roots(len(last_rows)),
        sampled_rows=[*range(num_decode_rows), *last_rows.values()],
        sampled_slots=[*decode, *last_rows],
        first_positions=[start + 1 for start in starts]
        + [chunk.start + chunk.length for chunk in chunks if chunk.last],
    )


def last_row_of_each(num_before: int, chunks: Sequence[PrefillChunk]) -> list[int]:
    """The step's row where each chunk ends; `num_before` rows stand before the chunks.

    >>> last_row_of_each(2, [PrefillChunk(0, 0, 3, True), PrefillChunk(1, 4, 2, True)])
    [4, 6]
    """
    rows, end = [], num_before
    for chunk in chunks:
        end += chunk.length
        rows.append(end - 1)
    return rows


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
