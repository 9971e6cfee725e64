"""Move tokens within the paged caches of all layers at once: the accepted nodes of a tree become consecutive."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from slipstream.kernels.launch import launch_options, let_next_start, wait_for_inputs

_WORD = 4  # bytes: what is moved is not looked at
_ALIGNMENT = tl.constexpr(16)  # bytes: as every allocation has it
_MAX_BLOCK = 2048  # words


class CacheRowMover:
    """Moves rows of caches [num_pages, page_size, ...] that have one shape and one dtype.

    It owns a table of the caches' addresses, so they must stay where they are; it keeps them alive. A row must be a
    multiple of 4 bytes.
    """

    __slots__ = ("_addresses", "_caches", "_num_words")

    def __init__(self, caches: Sequence[Tensor]) -> None:
        first = caches[0]
        for cache in caches:
            assert cache.is_contiguous() and cache.shape == first.shape and cache.dtype == first.dtype, (
                "caches of one shape and dtype: make a mover for each kind"
            )
        num_bytes = first[0, 0].numel() * first.element_size()
        assert num_bytes % _WORD == 0, f"a row of {num_bytes} bytes: a multiple of {_WORD} expected"
        assert all(cache.data_ptr() % _ALIGNMENT.value == 0 for cache in caches)
        self._caches = tuple(caches)
        self._num_words = num_bytes // _WORD
        self._addresses = torch.tensor([cache.data_ptr() for cache in caches], dtype=torch.int64, device=first.device)

    def move(self, source: Tensor, target: Tensor) -> None:
        """Row target[i] of every cache becomes what row source[i] was before the call.

        Rows, page * page_size + offset, are int64 [n]; source and target may overlap. A row that is twice in `target`
        gets one of its sources, whichever, perhaps a mixture: that may only be a row of the sink, which nobody reads.
        Two launches through a buffer of n rows of every cache; a row that moves to where it is costs next to nothing.
        """
        assert source.shape == target.shape and source.dtype == target.dtype == torch.int64
        assert source.is_contiguous() and target.is_contiguous()
        count, words = source.shape[0], self._num_words
        block = min(triton.next_power_of_2(words), _MAX_BLOCK)
        grid = (count, len(self._caches), triton.cdiv(words, block))
        buffer = torch.empty((len(self._caches), count, words), dtype=torch.int32, device=source.device)
        options = launch_options(source.device)
        for to_cache in (False, True):
            _copy_rows[grid](
                self._addresses,
                source,
                target,
                buffer,
                count,
                WORDS=words,
                BLOCK=block,
                TO_CACHE=to_cache,
                num_warps=4,
                **options,
            )


def move_cache_rows_reference(caches: Sequence[Tensor], source: Tensor, target: Tensor) -> None:
    """See CacheRowMover.move."""
    for cache in caches:
        rows = cache.view(-1, *cache.shape[2:])
        rows[target] = rows[source].clone()


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["source", "target"])
def _copy_rows(  # type: ignore[no-untyped-def]
    addresses,
    source,
    target,
    buffer,
    count,
    WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
    TO_CACHE: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program for BLOCK words of a row of one cache: from its source to the buffer, or from there to its target."""
    let_next_start(PDL)
    row, layer = tl.program_id(0), tl.program_id(1)
    columns = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    cache = tl.multiple_of(tl.load(addresses + layer).to(tl.pointer_type(tl.int32)), _ALIGNMENT)
    wait_for_inputs(PDL)
    origin, goal = tl.load(source + row), tl.load(target + row)
    buffered = buffer + (layer.to(tl.int64) * count + row) * WORDS + columns
    inside = columns < WORDS
    if origin != goal:
        if TO_CACHE:
            tl.store(cache + goal * WORDS + columns, tl.load(buffered, inside), inside)
        else:
            tl.store(buffered, tl.load(cache + origin * WORDS + columns, inside), inside)
