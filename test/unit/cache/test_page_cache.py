"""Pages: sharing, successors, validity, eviction order, duplicates, and the balance free + cached + held = total."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

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


def publish(cache: PageCache, key: list[int], num_valid: int) -> list[int]:
    """Cache what a request with these numbers computed; only the first num_valid rows have the draft's KV."""
    lease = PageLease()
    cache.extend(lease, -(-len(key) // PAGE_SIZE))
    pages = list(lease.pages)
    cache.publish(lease, key, len(key), num_valid)
    cache.release(lease)
    return pages


@pytest.mark.parametrize(("successor_depth", "num_shared"), [(0, 2), (1, 2), (2, 1), (3, 1), (4, 0)])
def test_a_page_is_shared_when_its_successors_are_the_same(successor_depth: int, num_shared: int) -> None:
    cache = PageCache(20, PAGE_SIZE, prefix_cache=True, successor_depth=successor_depth)
    pages = publish(cache, [1, 2, 3, 4, 5, 6, 7, 8, 9], num_valid=9)
    assert cache.lease([1, 2, 3, 4, 5, 0, 0, 0, 0]).pages == pages[:num_shared]


@pytest.mark.parametrize(("successor_depth", "num_published"), [(0, 3), (1, 2), (2, 2), (3, 1)])
def test_a_page_waits_for_its_successors(successor_depth: int, num_published: int) -> None:
    cache = PageCache(20, PAGE_SIZE, prefix_cache=True, successor_depth=successor_depth)
    key = [1, 2, 3, 4, 5, 6]
    lease = cache.lease(key)
    cache.extend(lease, 3)
    cache.publish(lease, key, 6, 6)
    assert len(lease.nodes) == num_published
    cache.publish(lease, [*key, 7, 8, 9, 0], 6, 6)
    assert len(lease.nodes) == 3


def test_the_last_of_a_prompt_is_known_to_nobody_else() -> None:
    """Its successors are compared, so pages end before the prompt's last successor_depth numbers."""
    cache = PageCache(20, PAGE_SIZE, prefix_cache=True, successor_depth=2)
    pages = publish(cache, [1, 2, 3, 4, 5, 6], num_valid=6)
    assert cache.lease([1, 2, 3, 4, 5]).pages == pages[:1]
    assert cache.lease([1, 2, 3, 4, 5, 6]).pages == pages[:2]


def test_pages_without_the_drafts_kv_are_for_those_who_do_not_need_it() -> None:
    cache = PageCache(30, PAGE_SIZE, prefix_cache=True)
    key = [1, 2, 3, 4, 5, 6]
    cold = publish(cache, key, num_valid=0)
    assert cache.lease([*key, 0], valid_only=True).pages == []
    assert cache.lease([*key, 0]).pages == cold
    part = publish(cache, key, num_valid=5)  # two valid pages; the third is half done
    assert cache.lease([*key, 0], valid_only=True).pages == part[:2]
    assert cache.lease([*key, 0]).pages == part, "the one with more valid pages, where both are as long"
    assert cache.lease([1, 2, 0], valid_only=False).pages == part[:1]


def test_the_longest_match_wins_over_a_shorter_valid_one() -> None:
    cache = PageCache(30, PAGE_SIZE, prefix_cache=True)
    cold = publish(cache, [1, 2, 3, 4, 5, 6], num_valid=0)
    warm = publish(cache, [1, 2, 3, 4], num_valid=4)
    assert cache.lease([1, 2, 3, 4, 5, 6, 0]).pages == cold
    assert cache.lease([1, 2, 3, 4, 5, 6, 0], valid_only=True).pages == warm


def test_a_page_freed_twice_is_noticed() -> None:
    allocator = PageAllocator(4)
    pages = allocator.allocate(2)
    allocator.free(pages)
    with pytest.raises(AssertionError, match="freed twice"):
        allocator.free(pages[:1])
    with pytest.raises(AssertionError):
        allocator.free([0])


class PageCacheMachine(RuleBasedStateMachine):
    """Random leases over a tiny alphabet; dicts say what each page must hold.

    A row of the target depends on the tokens up to it, one of the draft on the successors as well.
    """

    @initialize(successor_depth=st.integers(0, 2))
    def begin(self, successor_depth: int) -> None:
        self.successor_depth = successor_depth
        self.cache = PageCache(9, PAGE_SIZE, prefix_cache=True, successor_depth=successor_depth)
        self.leases: list[tuple[PageLease, list[int], int]] = []  # with its key and the number of valid rows
        self.content: dict[int, tuple[int, ...]] = {}  # page -> all tokens from position 0 to its end, and successors
        self.has_draft: dict[int, bool] = {}

    @rule(key=st.lists(st.integers(0, 1), min_size=1, max_size=9), warm=st.booleans(), data=st.data())
    def start(self, key: list[int], warm: bool, data: st.DataObject) -> None:
        lease = self.cache.lease(key, valid_only=warm)
        num_matched = len(lease.pages)
        for index, page in enumerate(lease.pages):
            assert self.content[page] == self.seen(key, index), "a shared page holds this prefix"
            assert self.has_draft[page] or not warm
        missing = -(-len(key) // PAGE_SIZE) - len(lease.pages)
        if missing > self.cache.num_available:
            self.cache.release(lease)
            return
        before = {page for other, _, _ in self.leases for page in other.pages}
        for page in self.cache.extend(lease, missing):
            assert page not in before, "a page in use was given out"
        goes_cold_at = data.draw(st.integers(num_matched * PAGE_SIZE, len(key))) if warm else 0
        for index in range(num_matched, len(key) // PAGE_SIZE):
            self.content[lease.pages[index]] = self.seen(key, index)
            self.has_draft[lease.pages[index]] = (index + 1) * PAGE_SIZE <= goes_cold_at
        self.leases.append((lease, key, goes_cold_at))

    def seen(self, key: list[int], index: int) -> tuple[int, ...]:
        return tuple(key[: (index + 1) * PAGE_SIZE + self.successor_depth])

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        lease, key, num_valid = data.draw(st.sampled_from(self.leases))
        num_written = data.draw(st.integers(0, len(key)))
        known = data.draw(st.integers(num_written, len(key)))
        self.cache.publish(lease, key[:known], num_written, min(num_valid, num_written))

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
        if not hasattr(self, "cache"):
            return
        assert self.cache.imbalance([lease for lease, _, _ in self.leases]) is None
        if not self.leases:
            assert self.cache.num_available == self.cache.capacity

    @invariant()
    def pages_in_use_are_not_free(self) -> None:
        if not hasattr(self, "cache"):
            return
        in_use = {page for lease, _, _ in self.leases for page in lease.pages}
        assert self.cache.num_free <= self.cache.capacity - len(in_use)


PageCacheMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestPageCacheMachine = PageCacheMachine.TestCase
