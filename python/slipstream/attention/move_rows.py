"""Move tokens within the paged cache: the accepted nodes of a tree become consecutive."""

from collections.abc import Sequence

from torch import Tensor


def move_rows(caches: Sequence[Tensor], source: Tensor, target: Tensor) -> None:
    """Copy cache rows in every layer: row target[i] becomes what row source[i] was before the call.

    Each cache is [num_pages, page_size, *cache_shape]; rows, page * page_size + offset, are int64 [n]. Both may
    overlap. A row that is twice in `target` gets one of its sources, whichever: that may only be a row of the sink,
    which nobody reads.
    """
    for cache in caches:
        rows = cache.view(-1, *cache.shape[2:])
        rows.index_copy_(0, target, rows.index_select(0, source))
