"""The matcher against a plain search over the whole text."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from slipstream.tokenizer.stop_strings import StopMatcher, StopStrings

texts = st.text("abc", max_size=40)
stop_lists = st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=5)


def first_match(text: str, stops: list[str]) -> tuple[int, str] | None:
    """(end, stop) of the match that completes first, the longest of several: by trying every beginning of the text."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return end, max(ending, key=len)
    return None


def may_begin(text: str, stops: list[str]) -> int:
    """Length of the longest end of `text` that begins a stop string."""
    return max(n for n in range(len(text) + 1) if n == 0 or any(stop.startswith(text[-n:]) for stop in stops))


@given(texts, stop_lists)
def test_finds_what_a_search_of_the_whole_text_finds(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(StopStrings(stops))
    found = matcher.feed(text)
    expected = first_match(text, stops)
    assert (found and (found.end, found.stop)) == expected
    if expected is None:
        assert matcher.num_held == may_begin(text, stops)


@given(texts, stop_lists, st.lists(st.integers(0, 40), max_size=6))
def test_pieces_do_not_matter(text: str, stops: list[str], cuts: list[int]) -> None:
    automaton = StopStrings(stops)
    whole = StopMatcher(automaton).feed(text)
    matcher, places = StopMatcher(automaton), sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for start, end in pairwise(places):
        found = matcher.feed(text[start:end])
        if found is not None:
            assert whole is not None and (start + found.end, found.stop) == (whole.end, whole.stop)
            return
    assert whole is None


def test_many_long_stops_share_one_automaton() -> None:
    stops = [f"{'x' * 50}{i:03d}" for i in range(200)]
    found = StopMatcher(StopStrings(stops)).feed("y" * 10 + "x" * 70 + "123" + "tail")
    assert found is not None and (found.stop, found.end) == (stops[123], 83)
