"""The event parser against the rules of the HTML standard, section 9.2.6, and against any way of cutting a stream."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.bench.sse import EventParser

TEXTS = st.lists(st.text().filter(lambda text: not set(text) & {"\r", "\n"}), min_size=1, max_size=3)


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [b"YHOO\n+2\n10"]),
        (b": a comment\n\ndata:first\nid: 1\n\ndata: second\n\n", [b"first", b"second"]),
        (b"data\n\ndata\ndata\n\ndata:", [b"", b"\n"]),  # the last block lacks its blank line
        (b"data:test\n\ndata: test\n\ndata:  test\n\n", [b"test", b"test", b" test"]),
        (b"event: done\n\nretry: 10\n\n", []),
        (b"data: a\r\n\r\ndata: b\r\rdata: c\n\n", [b"a", b"b", b"c"]),
    ],
)
def test_streams_of_the_standard(stream: bytes, events: list[bytes]) -> None:
    assert EventParser().push(stream) == events


@given(
    blocks=st.lists(TEXTS, min_size=1, max_size=4),
    newline=st.sampled_from(["\n", "\r\n"]),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_events_do_not_depend_on_how_the_bytes_arrive(blocks: list[list[str]], newline: str, cuts: list[int]) -> None:
    stream = "".join("".join(f"data: {text}{newline}" for text in texts) + newline for texts in blocks).encode()
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    parser = EventParser()
    events = [event for begin, end in pairwise(edges) for event in parser.push(stream[begin:end])]
    assert events == ["\n".join(texts).encode() for texts in blocks]


def test_line_separators_inside_json_do_not_end_a_line() -> None:
    text = "one\u2028two\u0085three\x0bfour"
    data = json.dumps(text, ensure_ascii=False).encode()
    [event] = EventParser().push(b"data: " + data + b"\n\n")
    assert json.loads(event) == text
