"""The free list of KV pages."""

from collections.abc import Iterable

SINK_PAGE = 0  # takes padding and rejected rows; never allocated


class PageAllocator:
    """Hands out page ids 1 .. num_pages - 1. The page freed last is given out first: it may still be in a cache."""

    def __init__(self, num_pages: int) -> None:
        if num_pages < 2:
            raise ValueError(f"{num_pages} pages: one is the sink, at least one more is needed")
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, SINK_PAGE, -1))
        self._is_free = bytearray([0] + [1] * (num_pages - 1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """`count` page ids; the caller has checked num_free."""
        assert count <= len(self._free), f"{count} pages wanted, {len(self._free)} free"
        first = len(self._free) - count
        pages = self._free[first:][::-1]
        del self._free[first:]
        for page in pages:
            self._is_free[page] = 0
        return pages

    def free(self, pages: Iterable[int]) -> None:
        """Take pages back; a page that is free already is a bug of ours."""
        for page in pages:
            assert page != SINK_PAGE and not self._is_free[page], f"page {page} freed twice"
            self._is_free[page] = 1
            self._free.append(page)
