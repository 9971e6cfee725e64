"""Pages: sharing, eviction order, duplicates, and the balance free + cached + held = total."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from slipstream.cache.page_allocator import PageAllocator
from slipstream.cache.page_cache import PageCache, PageLease

PAGE_SIZE = 2


def publish_and_release(cache: PageCache, token_ids: list[int]) -> list[int]:
    """Cache the whole pages of `token_ids`, as a request that computed them would; returns its page ids."""
    lease = cache.lease(token_ids)
    cache.extend(lease, -(-len(token_ids) // PAGE_SIZE) - len(lease.pages))
    pages = list(lease.pages)
    cache.publish(lease, token_ids, len(token_ids), len(token_ids))
    cache.release(lease)
    return pages


def test_a_prefix_is_shared_in_whole_pages_and_never_the_last_token() -> None:
    cache = PageCache(num_pages=10, page_size=PAGE_SIZE, prefix_cache=True)
    pages = publish_and_release(cache, [1, 2, 3, 4, 5])
    assert cache.lease([1, 2, 3, 4, 9]).pages == pages[:2]
    assert cache.lease([1, 2, 3, 4]).pages == pages[:1], "the row of token 4 must be computed"
    assert cache.lease([1, 9, 3, 4, 5]).pages == []
    assert cache.lease([1, 2, 3, 4, 9], match=False).pages == []


def test_without_prefix_cache_nothing_is_kept() -> None:
    cache = PageCache(num_pages=10, page_size=PAGE_SIZE, prefix_cache=False)
    publish_and_release(cache, [1, 2, 3, 4, 5])
    assert cache.num_free == cache.capacity == 9


def test_the_least_recently_used_leaf_goes_first_and_never_a_page_in_use() -> None:
    cache = PageCache(num_pages=5, page_size=PAGE_SIZE, prefix_cache=True)
    old = publish_and_release(cache, [1, 1, 2, 2])
    publish_and_release(cache, [3, 3, 4, 4])
    in_use = cache.lease([1, 1, 2, 2, 0])  # now the older of the two is in use
    assert in_use.pages == old
    taker = PageLease()
    cache.extend(taker, 2)
    assert cache.num_available == 0
    assert cache.lease([3, 3, 4, 4, 0]).pages == [], "evicted"
    cache.release(in_use)
    assert cache.lease([1, 1, 2, 2, 0]).pages == old


def test_a_leaf_is_evicted_before_its_parent() -> None:
    cache = PageCache(num_pages=4, page_size=PAGE_SIZE, prefix_cache=True)
    pages = publish_and_release(cache, [1, 1, 2, 2, 3, 3])
    cache.extend(PageLease(), 1)
    lease = cache.lease([1, 1, 2, 2, 3, 3, 0])
    assert lease.pages == pages[:2]


def test_two_requests_that_computed_the_same_page_keep_their_own_until_release() -> None:
    cache = PageCache(num_pages=10, page_size=PAGE_SIZE, prefix_cache=True)
    first, second = cache.lease([1, 2, 3]), cache.lease([1, 2, 3])
    cache.extend(first, 2)
    cache.extend(second, 2)
    cache.publish(first, [1, 2], 2, 2)
    cache.publish(second, [1, 2], 2, 2)
    assert first.pages[0] != second.pages[0]
    assert cache.imbalance([first, second]) is None
    cache.release(second)
    assert cache.imbalance([first]) is None
    assert cache.lease([1, 2, 3]).pages == first.pages[:1]


def test_a_page_freed_twice_is_noticed() -> None:
    allocator = PageAllocator(4)
    pages = allocator.allocate(2)
    allocator.free(pages)
    with pytest.raises(AssertionError, match="freed twice"):
        allocator.free(pages[:1])
    with pytest.raises(AssertionError):
        allocator.free([0])


class PageCacheMachine(RuleBasedStateMachine):
    """Random leases over a tiny alphabet; a dict of page -> tokens says what each page must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PageCache(num_pages=9, page_size=PAGE_SIZE, prefix_cache=True)
        self.leases: list[tuple[PageLease, list[int]]] = []
        self.content: dict[int, tuple[int, ...]] = {}  # page -> all tokens from position 0 to its end

    @rule(token_ids=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def start(self, token_ids: list[int]) -> None:
        lease = self.cache.lease(token_ids)
        for index, page in enumerate(lease.pages):
            assert self.content[page] == tuple(token_ids[: (index + 1) * PAGE_SIZE]), "a shared page holds this prefix"
        missing = -(-len(token_ids) // PAGE_SIZE) - len(lease.pages)
        if missing > self.cache.num_available:
            self.cache.release(lease)
            return
        before = {page for other, _ in self.leases for page in other.pages}
        for page in self.cache.extend(lease, missing):
            assert page not in before, "a page in use was given out"
        for index in range(len(lease.nodes), len(token_ids) // PAGE_SIZE):
            self.content[lease.pages[index]] = tuple(token_ids[: (index + 1) * PAGE_SIZE])
        self.leases.append((lease, token_ids))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        lease, token_ids = data.draw(st.sampled_from(self.leases))
        num_written = data.draw(st.integers(0, len(token_ids)))
        self.cache.publish(lease, token_ids, num_written, num_written)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.leases) - 1))
        self.cache.release(self.leases.pop(index)[0])

    @rule()
    def flush(self) -> None:
        self.cache.flush()
        assert self.cache.num_evictable == 0

    @invariant()
    def pages_add_up(self) -> None:
        assert self.cache.imbalance([lease for lease, _ in self.leases]) is None
        if not self.leases:
            assert self.cache.num_available == self.cache.capacity

    @invariant()
    def pages_in_use_are_not_free(self) -> None:
        in_use = {page for lease, _ in self.leases for page in lease.pages}
        assert self.cache.num_free <= self.cache.capacity - len(in_use)


PageCacheMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestPageCacheMachine = PageCacheMachine.TestCase
