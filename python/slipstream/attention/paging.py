"""From requests, their positions and the page tables of all slots to the layout of one forward pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from slipstream.attention.base import Layout, Tree
from slipstream.layers.upload import upload


def make_layout(
    page_tables: Tensor,
    page_size: int,
    slots: Sequence[int],
    starts: Sequence[int],
    num_rows: Sequence[int],
    num_decode: int,
    tree: Tree | None = None,
) -> tuple[Layout, Tensor]:
    """The layout of rows at the cache positions starts[r] + j, j < num_rows[r], of slot slots[r]; and these positions.

    `page_tables` is int32 [slots, max pages]. The first `num_decode` requests decode. The positions, int64 [T], are
    those for RoPE as well, but for the decode rows of a tree: see tree_positions().

    Example with page_size 4 and the tables [[7, 2], [5, 0]]: slots [0, 1], starts [5, 0] and num_rows [2, 3] give
    kv_lens [7, 3], kv_rows [9, 10, 20, 21, 22] and positions [5, 6, 0, 1, 2].
    """
    device = page_tables.device
    kv_lens = tuple(start + count for start, count in zip(starts, num_rows, strict=True))
    num_columns = -(-max(kv_lens) // page_size)
    assert num_columns <= page_tables.shape[1], f"{max(kv_lens)} positions, but {page_tables.shape[1]} pages in a table"
    if max(num_rows) == 1:
        request_slots, positions = upload((slots, starts), torch.int64, device).unbind(0)
        row_slots, ends = request_slots, positions + 1
    else:
        first_rows = [0]
        for count in num_rows[:-1]:
            first_rows.append(first_rows[-1] + count)
        shifts = [start - row for start, row in zip(starts, first_rows, strict=True)]
        requests = upload((slots, kv_lens, shifts, num_rows), torch.int64, device)
        request_slots, ends = requests[0], requests[1]
        total = first_rows[-1] + num_rows[-1]
        of_rows = requests[:3].repeat_interleave(requests[3], dim=1, output_size=total)
        row_slots, positions = of_rows[0], of_rows[2] + torch.arange(total, device=device)
    layout = Layout(
        num_decode=num_decode,
        num_rows=tuple(num_rows),
        kv_lens=ends,
        kv_lens_cpu=kv_lens,
        page_tables=page_tables[:, :num_columns].index_select(0, request_slots),
        kv_rows=locate(page_tables, row_slots, positions, page_size),
        tree=tree,
    )
    return layout, positions


def tree_positions(layout: Layout, positions: Tensor) -> Tensor:
    """int64 [T]: RoPE positions of a layout with a tree, from the cache positions of its rows.

    A decode row stands at its tree's start plus its distance from the root; other rows where they are in the cache.
    Where the tree of the example above starts at 5 and both its rows are roots, they stand at 5: [5, 5, 0, 1, 2].
    """
    tree = layout.tree
    assert tree is not None, "no tree, so the cache positions are those for RoPE"
    device, num_rows = positions.device, layout.num_rows[: layout.num_decode]
    width = tree.visible.shape[1]
    own = [request * width + row for request, count in enumerate(num_rows) for row in range(count)]
    starts = [start for start, count in zip(tree.starts, num_rows, strict=True) for _ in range(count)]
    own_rows, row_starts = upload((own, starts), torch.int64, device).unbind(0)
    num_seen = tree.visible.sum(2).view(-1).index_select(0, own_rows)
    return torch.cat((row_starts + num_seen - 1, positions[len(own) :]))


def locate(page_tables: Tensor, slots: Tensor, positions: Tensor, page_size: int) -> Tensor:
    """int64 [T]: page * page_size + offset of each position.

    With page_size 4 and the page table [7, 2] for slot 0, positions [1, 5] of slots [0, 0] give [29, 9].
    """
    columns = positions.div(page_size, rounding_mode="floor")
    pages = page_tables.view(-1).index_select(0, slots * page_tables.shape[1] + columns)
    return pages * page_size + (positions - columns * page_size)
