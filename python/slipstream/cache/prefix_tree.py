"""The prefix tree: which pages hold the KV of which token prefix, so that a later prompt can start from them.

One node is one whole page. A node's path from the root spells the tokens from position 0, so equal paths mean
equal KV. A draft's KV of a token may depend on tokens after it, so the page's successors are part of its key; and a
page holds the draft's KV (it is valid) or the target's alone. A valid page follows valid pages only. Nodes in use are
locked along their whole path; the others form the cache and are evicted leaf by leaf, the least recently used first.
"""

import heapq
from collections.abc import Iterable, Sequence

PageKey = tuple[int, ...]
"""What a page holds, given the pages before it: True if it is valid, then the numbers of its page_size positions and of
the successors. One flat tuple: long prompts look up hundreds of them."""


class PrefixNode:
    """One cached page. `num_locks` counts the leases that use it."""

    __slots__ = ("children", "key", "last_used", "num_locks", "page", "parent")

    def __init__(self, key: PageKey, page: int, parent: "PrefixNode | None") -> None:
        self.key = key
        self.page = page
        self.parent = parent
        self.children: dict[PageKey, PrefixNode] = {}
        self.num_locks = 0
        self.last_used = 0

    @property
    def is_valid(self) -> bool:
        """The draft's KV is there too."""
        return bool(self.key[0])


class PrefixTree:
    """Maps token prefixes to pages, whole pages only. KV of a position depends on `successor_depth` positions after."""

    def __init__(self, page_size: int, successor_depth: int = 0) -> None:
        self.page_size = page_size
        self.successor_depth = successor_depth
        self.num_pages = 0
        self.num_evictable = 0  # nodes without a lock; their descendants have none either
        self._num_invalid = 0
        self._root = PrefixNode((True,), -1, None)
        self._clock = 0
        self._heap: list[tuple[int, int, PrefixNode]] = []  # (last_used, page, node); stale entries are skipped

    def match(self, numbers: Sequence[int], max_pages: int, valid_only: bool = False) -> list[PrefixNode]:
        """The longest cached path for `numbers`, at most `max_pages` long, from the root down.

        Of several (two requests computed the same tokens, one with a draft) the one with the most valid pages.
        `numbers` reaches successor_depth positions beyond max_pages pages.
        """
        last = [self._root]  # the ends of all paths so far, those with the most valid pages first
        for index in range(max_pages):
            longer = self._longer(last, numbers, index, valid_only)
            if not longer:
                break
            last = longer
        path: list[PrefixNode] = []
        node = last[0]
        while node.parent is not None:
            path.append(node)
            node = node.parent
        return path[::-1]

    def _longer(self, last: list[PrefixNode], numbers: Sequence[int], index: int, valid_only: bool) -> list[PrefixNode]:
        """The paths with one more page, page number `index` of `numbers`."""
        keys = [self._key(numbers, index, True)]
        if not valid_only and self._num_invalid:
            keys.append(self._key(numbers, index, False))
        return [child for node in last for key in keys if (child := node.children.get(key)) is not None]

    def lock(self, nodes: Iterable[PrefixNode]) -> None:
        """Keep `nodes` (a path from the root, or its continuation) from eviction."""
        for node in nodes:
            if node.num_locks == 0:
                self.num_evictable -= 1
            node.num_locks += 1

    def unlock(self, nodes: Sequence[PrefixNode]) -> None:
        """Undo one lock() of the whole path; its unused part becomes evictable, and counts as used just now."""
        self._clock += 1
        for node in nodes:
            node.num_locks -= 1
            node.last_used = self._clock
            if node.num_locks == 0:
                self.num_evictable += 1
        if nodes and nodes[-1].num_locks == 0:
            self._offer(nodes[-1])

    def insert(
        self, parent: PrefixNode | None, numbers: Sequence[int], index: int, page: int, is_valid: bool = True
    ) -> PrefixNode:
        """The node for page number `index` of `numbers` under `parent`; made with `page` unless it exists."""
        above = parent or self._root
        assert not is_valid or above.is_valid, "a valid page follows valid pages only"
        key = self._key(numbers, index, is_valid)
        node = above.children.get(key)
        if node is None:
            node = above.children[key] = PrefixNode(key, page, above)
            self.num_pages += 1
            self._num_invalid += not is_valid
            self.num_evictable += 1
        return node

    def evict(self, count: int) -> list[int]:
        """Remove up to `count` unlocked pages, least recently used leaves first; returns their ids."""
        pages: list[int] = []
        while len(pages) < count and self._heap:
            last_used, _, node = heapq.heappop(self._heap)
            if node.last_used != last_used or node.num_locks or node.children or node.parent is None:
                continue
            pages.append(node.page)
            self._remove(node)
        return pages

    def clear(self) -> list[int]:
        """Remove every unlocked page."""
        return self.evict(self.num_evictable)

    def _remove(self, node: PrefixNode) -> None:
        parent = node.parent
        assert parent is not None
        del parent.children[node.key]
        node.parent = None
        self.num_pages -= 1
        self._num_invalid -= not node.is_valid
        self.num_evictable -= 1
        if parent is not self._root and not parent.children and not parent.num_locks:
            self._offer(parent)

    def _offer(self, node: PrefixNode) -> None:
        if node.children:
            return
        heapq.heappush(self._heap, (node.last_used, node.page, node))
        if len(self._heap) > 64 + 4 * self.num_pages:
            self._heap = [entry for entry in self._heap if self._is_current(entry)]
            heapq.heapify(self._heap)

    @staticmethod
    def _is_current(entry: tuple[int, int, PrefixNode]) -> bool:
        node = entry[2]
        return node.parent is not None and node.last_used == entry[0] and not node.num_locks and not node.children

    def _key(self, numbers: Sequence[int], index: int, is_valid: bool) -> PageKey:
        begin, end = index * self.page_size, (index + 1) * self.page_size + self.successor_depth
        assert end <= len(numbers), f"the successors of page {index} are not known"
        return (is_valid, *numbers[begin:end])
