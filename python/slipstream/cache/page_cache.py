"""Pages of all requests: what is free, what is cached, what is held. Free + cached + held = total, always.

A request has a PageLease: its page table, and which of those pages it shares with the prefix tree. A `key` has one
number for each position: the token id, or what stands for it where the same id can mean different things (images).

With a draft that keeps KV, a page is shared by those alone who have the same `successor_depth` numbers after it, and
is valid or not: whether the draft's KV is in it beside the target's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from slipstream.cache.page_allocator import PageAllocator
from slipstream.cache.prefix_tree import PrefixNode, PrefixTree


@dataclass
class PageLease:
    """The pages of one request.

    pages    its page table; entry i holds positions [i * page_size, (i + 1) * page_size)
    nodes    locked tree nodes for the first len(nodes) entries
    private  pages that belong to this lease alone. A page whose node was made by another request with the same
             tokens stays private: its table entry is in use by steps in flight and is not exchanged.
    """

    pages: list[int] = field(default_factory=list)
    nodes: list[PrefixNode] = field(default_factory=list)
    private: set[int] = field(default_factory=set)


class PageCache:
    """Allocator and prefix tree together."""

    def __init__(self, num_pages: int, page_size: int, prefix_cache: bool, successor_depth: int = 0) -> None:
        self.page_size = page_size
        self.num_releases = 0  # grows whenever pages may have become available: a reason to try again
        self._prefix_cache = prefix_cache
        self._num_pages = num_pages
        self._successor_depth = successor_depth
        self._reset()

    def _reset(self) -> None:
        self._allocator = PageAllocator(self._num_pages)
        self._tree = PrefixTree(self.page_size, self._successor_depth)

    @property
    def capacity(self) -> int:
        """Usable pages: all but the sink."""
        return self._num_pages - 1

    @property
    def num_free(self) -> int:
        return self._allocator.num_free

    @property
    def num_evictable(self) -> int:
        return self._tree.num_evictable

    @property
    def num_available(self) -> int:
        """Pages that extend() can still give: free ones and cached ones nobody uses."""
        return self._allocator.num_free + self._tree.num_evictable

    def lease(self, key: Sequence[int], match: bool = True, valid_only: bool = False) -> PageLease:
        """A lease that starts with the cached whole pages of `key`, short of the last token.

        The last token is always computed: its row gives the next token. With match False the lease starts empty, with
        valid_only it has valid pages only.
        """
        if not (match and self._prefix_cache):
            return PageLease()
        nodes = self._tree.match(key, (len(key) - max(1, self._successor_depth)) // self.page_size, valid_only)
        self._tree.lock(nodes)
        return PageLease(pages=[node.page for node in nodes], nodes=nodes)

    def extend(self, lease: PageLease, count: int) -> list[int]:
        """Add `count` pages to the lease, evicting cached ones if need be; the caller has checked num_available."""
        missing = count - self._allocator.num_free
        if missing > 0:
            self._allocator.free(self._tree.evict(missing))
        pages = self._allocator.allocate(count)
        lease.pages.extend(pages)
        lease.private.update(pages)
        return pages

    def publish(self, lease: PageLease, key: Sequence[int], num_written: int, num_valid: int) -> None:
        """Put whole pages of the first `num_written` positions into the tree: those whose successors `key` knows.

        Their KV is final and will never be written again; the draft's KV is there for the first `num_valid` positions.

        With page_size 2 and successor_depth 1, key [7, 8, 9, 5], 4 written and 3 valid positions give one page, valid;
        with one number more in `key` there is a second one, not valid.
        """
        if not self._prefix_cache:
            return
        num_pages = min(num_written, len(key) - self._successor_depth) // self.page_size
        num_before = len(lease.nodes)
        node = lease.nodes[-1] if lease.nodes else None
        for index in range(num_before, num_pages):
            page = lease.pages[index]
            node = self._tree.insert(node, key, index, page, is_valid=(index + 1) * self.page_size <= num_valid)
            lease.nodes.append(node)
            if node.page == page:
                lease.private.discard(page)
        self._tree.lock(lease.nodes[num_before:])

    def release(self, lease: PageLease) -> None:
        """Give everything back: shared pages stay cached, private ones become free. The lease is empty afterwards."""
        self._tree.unlock(lease.nodes)
        self._allocator.free(lease.private)
        lease.pages, lease.nodes, lease.private = [], [], set()
        self.num_releases += 1

    def flush(self) -> None:
        """Forget every cached page that nobody uses."""
        self._allocator.free(self._tree.clear())
        self.num_releases += 1

    def imbalance(self, leases: Iterable[PageLease]) -> str | None:
        """None when free + cached + held = total for the given complete set of leases, else what is wrong."""
        held = sum(len(lease.private) for lease in leases)
        free, cached = self._allocator.num_free, self._tree.num_pages
        if free + cached + held == self.capacity:
            return None
        return f"{free} pages free + {cached} cached + {held} held is not {self.capacity}"

    def heal(self) -> None:
        """Start over with everything free; only when no lease is out."""
        self._reset()
        self.num_releases += 1
