"""Which cache rows each request of a step reads, and what is masked of them: once per step and window.

Sizes come from Layout.kv_lens_cpu, which must be exact here, not an upper bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.attention.base import Layout
from slipstream.attention.masks import causal_mask, tree_mask
from slipstream.attention.spans import DecodeSpan, decode_spans, padded_rows, rows_that_count

_MAX_MASK_ELEMENTS = 2**23  # of one mask: bounds its memory to 32 MiB in fp32
_MIN_WINDOW_ROWS = 256  # rows of a chunk that share a window's keys: fewer would make too many small products
_FREE_PADDING = 2048  # padded tokens that cost less than one more call


@dataclass(frozen=True)
class DecodeGroup:
    """B requests that are padded to one number of rows M and to one length L."""

    rows: Tensor | None  # int64 [B * M] of the step's rows; None: the first B * M
    gather: Tensor  # int64 [B * L] cache rows
    mask: Tensor | None  # [B, 1, 1 or M * heads_per_kv, L] added to the scores; None: nothing is masked
    size: int  # B
    num_rows: int = 1  # M
    kept: Tensor | None = None  # int64: which of the B * M rows are no padding; None: all
    targets: Tensor | None = None  # int64: which of the step's rows those are; None: the first ones


@dataclass(frozen=True)
class ChunkBlock:
    """Consecutive rows of one request: of a chunk, or a decode request whose mask is too large for a group."""

    begin: int  # rows [begin, end) of the step
    end: int
    gather: Tensor  # int64 [L] cache rows
    mask: Tensor | None  # [rows, L] added to the scores; None: plain causal from the first position


@dataclass(frozen=True)
class Gather:
    """One step, for all layers with one window."""

    decode: list[DecodeGroup]
    chunks: list[ChunkBlock]


class GatherPlanner:
    """Plans for caches with pages of `page_size`; masks have `dtype`, that of the queries."""

    def __init__(self, page_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._page_size = page_size
        self._dtype = dtype
        self._offsets = torch.arange(page_size, device=device)
        self._zero = torch.zeros((), dtype=dtype, device=device)
        self._minus_infinity = torch.full((), float("-inf"), dtype=dtype, device=device)

    def plan(self, layout: Layout, window: int | None, heads_per_kv: int = 1, *, one_row_each: bool) -> Gather:
        """What a step reads where every row sees its last `window` positions; None: all of them.

        `heads_per_kv` query heads share a KV head; where decode requests have several rows, as many rows of their mask
        are equal. `one_row_each` is has_one_row_each(layout), which the caller knows.
        """
        decode: list[DecodeGroup] = []
        chunks: list[ChunkBlock] = []
        if layout.num_decode and one_row_each:
            lens = layout.kv_lens_cpu[: layout.num_decode]
            groups = group_by_length(lens if window is None else [min(length, window) for length in lens])
            decode = [self._plan_decode(layout, members, len(groups) == 1, window) for members in groups]
        elif layout.num_decode:
            decode, chunks = self._plan_rows(layout, window, heads_per_kv)
        begin = sum(layout.num_rows[: layout.num_decode])
        for request in range(layout.num_decode, len(layout.num_rows)):
            chunks.extend(self._plan_chunk(layout, request, begin, window))
            begin += layout.num_rows[request]
        return Gather(decode, chunks)

    def _plan_decode(self, layout: Layout, members: list[int], all_of_them: bool, window: int | None) -> DecodeGroup:
        lens_cpu = [layout.kv_lens_cpu[request] for request in members]
        longest = max(lens_cpu)
        rows = None if all_of_them else torch.tensor(members, device=layout.kv_lens.device)
        tables, lens = layout.page_tables, layout.kv_lens
        tables, lens = (
            (tables[: len(members)], lens[: len(members)])
            if rows is None
            else (tables.index_select(0, rows), lens.index_select(0, rows))
        )
        if window is None or longest <= window:
            gather = self._cache_rows(tables, longest)
        else:
            first = (lens - window).clamp_(min=0)
            longest = window
            gather = self._cache_rows_from(tables, first, window)
            lens = lens - first
        if min(lens_cpu) >= longest:
            return DecodeGroup(rows, gather.reshape(-1), None, len(members), targets=rows)
        is_padding = torch.arange(longest, device=gather.device) >= lens.unsqueeze(1)
        # Padding reads the request's own first row. Any other row, even the sink, might hold another request's NaN,
        # and a NaN times the weight 0 of a masked position is a NaN.
        gather = torch.where(is_padding, gather[:, :1], gather)
        mask = torch.zeros(is_padding.shape, dtype=self._dtype, device=gather.device)
        mask.masked_fill_(is_padding, float("-inf"))
        return DecodeGroup(rows, gather.view(-1), mask[:, None, None], len(members), targets=rows)

    def _plan_rows(
        self, layout: Layout, window: int | None, heads_per_kv: int
    ) -> tuple[list[DecodeGroup], list[ChunkBlock]]:
        """Decode requests of which some have several rows or a tree."""
        spans = decode_spans(layout, window)
        lens = [span.end - span.low for span in spans]
        groups: list[DecodeGroup] = []
        blocks: list[ChunkBlock] = []
        for members in group_by_length(lens):
            most = max(spans[member].num_rows for member in members)
            size = _MAX_MASK_ELEMENTS // (most * heads_per_kv * max(lens[member] for member in members))
            if size == 0:
                blocks.extend(self._plan_block(layout, spans[member], window) for member in members)
            else:
                for first in range(0, len(members), size):
                    part = [spans[member] for member in members[first : first + size]]
                    groups.append(self._plan_group(layout, part, window, heads_per_kv))
        return groups, blocks

    def _plan_group(
        self, layout: Layout, spans: list[DecodeSpan], window: int | None, heads_per_kv: int
    ) -> DecodeGroup:
        gather, mask = self._plan_reads(layout, spans, window)
        size, most, longest = mask.shape
        if most > 1 and heads_per_kv > 1:
            mask = mask.unsqueeze(2).expand(-1, -1, heads_per_kv, -1).reshape(size, -1, longest)
        device = gather.device
        rows = kept = targets = None
        if size < layout.num_decode:
            targets = torch.tensor([span.begin + row for span in spans for row in range(span.num_rows)], device=device)
            rows = targets
        if any(span.num_rows < most for span in spans):
            rows = torch.tensor(padded_rows(spans, most), device=device)
            kept = torch.tensor(rows_that_count(spans, most), device=device)
        return DecodeGroup(rows, gather.view(-1), mask.unsqueeze(1), size, most, kept, targets)

    def _plan_block(self, layout: Layout, span: DecodeSpan, window: int | None) -> ChunkBlock:
        gather, mask = self._plan_reads(layout, [span], window)
        return ChunkBlock(span.begin, span.begin + span.num_rows, gather.view(-1), mask[0])

    def _plan_reads(self, layout: Layout, spans: list[DecodeSpan], window: int | None) -> tuple[Tensor, Tensor]:
        """Cache rows, int64 [B, L], and what is added to the scores, [B, M, L]. Padding repeats the last row."""
        device = self._offsets.device
        values = [(span.request, span.num_rows - 1, span.low, span.end, span.start) for span in spans]
        requests, last_rows, lows, ends, starts = torch.tensor(values, device=device).unsqueeze(2).unbind(1)
        tables = layout.page_tables.index_select(0, requests.view(-1))
        positions = lows + torch.arange(max(span.end - span.low for span in spans), device=device)
        rows = torch.arange(max(span.num_rows for span in spans), device=device).minimum(last_rows)
        if layout.tree is None:
            visible = causal_mask(positions, starts + rows, window)
        else:
            visible = tree_mask(layout.tree.visible[requests, rows], positions - starts, window)
        if any(span.low for span in spans):
            gather = self._cache_rows_from(tables, lows.view(-1), positions.shape[1])
        else:
            gather = self._cache_rows(tables, positions.shape[1])
        # As in _plan_decode, nothing that another request may have written is read: not what lies beyond the end, nor
        # the sink, where drafts go for which a request has no page.
        others = (positions >= ends).logical_or_(gather < self._page_size)
        gather = torch.where(others, gather[:, :1], gather)
        return gather, torch.where(visible, self._zero, self._minus_infinity)

    def _plan_chunk(self, layout: Layout, request: int, begin: int, window: int | None) -> list[ChunkBlock]:
        num_rows, kv_len = layout.num_rows[request], layout.kv_lens_cpu[request]
        start = kv_len - num_rows
        gather = self._cache_rows(layout.page_tables[request : request + 1], kv_len).view(-1)
        if window is None or window >= kv_len:
            if start == 0:
                return [ChunkBlock(begin, begin + num_rows, gather, None)]
            window = kv_len
        blocks = []
        step = rows_per_block(kv_len, window)
        for first in range(0, num_rows, step):
            last = min(first + step, num_rows)
            # keys before the first row's window and beyond the last row are masked for all rows of the block
            low, high = max(start + first - window + 1, 0), start + last
            mask = self._window_mask(last - first, high - low, start + first - low, window)
            blocks.append(ChunkBlock(begin + first, begin + last, gather[low:high], mask))
        return blocks

    def _window_mask(self, num_rows: int, num_keys: int, own: int, window: int) -> Tensor:
        """[rows, keys]: 0 where row r may see a key, at own + r and up to window - 1 keys before; -inf elsewhere."""
        mask = torch.full((num_rows, num_keys), float("-inf"), dtype=self._dtype, device=self._offsets.device)
        if own + num_rows <= window:
            return mask.triu_(own + 1)
        return mask.triu(own + 1).add_(mask.tril_(own - window))

    def _cache_rows(self, tables: Tensor, length: int) -> Tensor:
        """int64 [B, length]: cache row of every position, from page tables [B, pages].

        With page_size 4 and the table [7, 2], length 6 gives [28, 29, 30, 31, 8, 9].
        """
        pages = tables[:, : -(-length // self._page_size)].long()
        return (pages.unsqueeze(2) * self._page_size + self._offsets).flatten(1)[:, :length]

    def _cache_rows_from(self, tables: Tensor, first: Tensor, length: int) -> Tensor:
        """The same for `length` positions from `first` [B] on: with first [3] and length 2, [31, 8]."""
        positions = first.unsqueeze(1) + torch.arange(length, device=first.device)
        columns = positions.div(self._page_size, rounding_mode="floor")
        # positions beyond a request's end are padding, which may lie beyond the table
        pages = tables.gather(1, columns.clamp(max=tables.shape[1] - 1)).long()
        return pages * self._page_size + (positions - columns * self._page_size)


def rows_per_block(kv_len: int, window: int) -> int:
    """Into how many rows a chunk is cut, so that a block's mask, [rows, min(kv_len, rows + window - 1)], stays small.

    With a short window a block has about as many rows as the window: half of what it computes then counts.

    >>> rows_per_block(kv_len=131072, window=131072), rows_per_block(kv_len=131072, window=4096)
    (64, 1024)
    """
    if window >= kv_len:
        return max(_MAX_MASK_ELEMENTS // kv_len, 1)
    wanted = max(window, _MIN_WINDOW_ROWS)
    return max(min(wanted, _MAX_MASK_ELEMENTS // (2 * wanted)), 1)


def group_by_length(lens: Sequence[int]) -> list[list[int]]:
    """Indices of requests to pad together: as few groups as keep padding below the tokens that count.

    >>> group_by_length([100, 90, 80])
    [[0, 1, 2]]
    >>> group_by_length([4000, 50, 60, 40])
    [[0], [1, 2, 3]]
    """
    if len(lens) * max(lens) <= 2 * sum(lens) + _FREE_PADDING:
        return [list(range(len(lens)))]
    groups: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lens)), key=lambda index: -lens[index]):
        if not groups or lens[index] * 2 < longest:
            groups.append([])
            longest = lens[index]
        groups[-1].append(index)
    return [sorted(group) for group in groups]
