"""Decode requests with several rows each: where their rows are, what they read, and how they are padded."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from slipstream.attention.base import Layout


@dataclass(frozen=True)
class DecodeSpan:
    """A decode request has the step's rows [begin, begin + num_rows) and reads positions [low, end) of its cache."""

    request: int
    begin: int
    num_rows: int
    low: int
    end: int
    start: int  # position of its first row, or with a tree of the first node


def has_one_row_each(layout: Layout) -> bool:
    """Does every decode request have one row, which sees all that was before it?"""
    return layout.tree is None and max(layout.num_rows[: layout.num_decode], default=1) == 1


def decode_spans(layout: Layout, window: int | None) -> list[DecodeSpan]:
    """The layout's decode requests. With a window they read from the first position on that a row at `start` sees."""
    num_rows, ends = layout.num_rows[: layout.num_decode], layout.kv_lens_cpu[: layout.num_decode]
    first_rows = tuple(end - count for end, count in zip(ends, num_rows, strict=True))
    starts = first_rows if layout.tree is None else layout.tree.starts
    late = [request for request, (start, row) in enumerate(zip(starts, first_rows, strict=True)) if start > row]
    assert not late, f"trees of requests {late} start at {starts}, after their first rows at {first_rows}"
    lows = [0 if window is None else max(start - window + 1, 0) for start in starts]
    begins = accumulate(num_rows[:-1], initial=0)
    return [
        DecodeSpan(request, *span)
        for request, span in enumerate(zip(begins, num_rows, lows, ends, starts, strict=True))
    ]


def padded_rows(spans: Sequence[DecodeSpan], most: int) -> list[int]:
    """The step's rows, `most` for each request: one with fewer repeats its last.

    >>> padded_rows([DecodeSpan(0, 0, 1, 0, 9, 8), DecodeSpan(1, 1, 3, 0, 9, 6)], 3)
    [0, 0, 0, 1, 2, 3]
    """
    return [span.begin + min(row, span.num_rows - 1) for span in spans for row in range(most)]


def rows_that_count(spans: Sequence[DecodeSpan], most: int) -> list[int]:
    """Which of the padded rows are the requests' own.

    >>> rows_that_count([DecodeSpan(0, 0, 1, 0, 9, 8), DecodeSpan(1, 1, 3, 0, 9, 6)], 3)
    [0, 3, 4, 5]
    """
    return [index * most + row for index, span in enumerate(spans) for row in range(span.num_rows)]
