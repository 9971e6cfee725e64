"""One choice's stream against rules applied to the whole answer at once."""

from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from slipstream.messages.sampling import FinishReason
from slipstream.tokenizer.detokenizer import PieceDetokenizer, PieceTable
from slipstream.tokenizer.request_state import ChoiceState
from slipstream.tokenizer.stop_strings import StopMatcher, StopStrings

PIECES = [b"a", b"b", b"ab", b"ba", b"abb", b"", b"c a", b"<end>", "é".encode()[:1], "é".encode()[1:]]
END, SKIPPED = 7, 5
TABLE = PieceTable(PIECES, frozenset({END}))
LENGTH, STOP = FinishReason("length"), FinishReason("stop", END)

ids_lists = st.lists(st.integers(0, 9), max_size=25)
plain_lists = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 6]), max_size=25)
stop_lists = st.lists(st.text("abc ", min_size=1, max_size=4), max_size=4)
cut_lists = st.lists(st.integers(0, 25), max_size=8)


@dataclass
class Answer:
    """Everything that one stream released."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    num_generated: int = 0


def stream(
    ids: list[int], cuts: list[int], stops: list[str], finish: FinishReason, min_new_tokens: int = 0, skip: bool = True
) -> Answer:
    """Feed `ids` in pieces ending at `cuts`; check on the way that nothing is taken back."""
    matcher = StopMatcher(StopStrings(stops)) if stops else None
    state = ChoiceState(PieceDetokenizer(TABLE, skip_special_tokens=skip, continues=False), matcher, min_new_tokens)
    answer, places = Answer(), [0, *sorted({cut for cut in cuts if cut < len(ids)}), len(ids)]
    for start, end in pairwise(places):
        released = state.add(ids[start:end], None, finish if end == len(ids) else None)
        answer.text += released.text
        answer.ids += [token.token_id for token in released.tokens]
        if released.finish is None:
            assert answer.text.startswith(text_of(answer.ids, skip))
        if released.finish is not None:
            answer.finish, answer.num_generated = released.finish, state.num_generated
            break
    return answer


def text_of(ids: list[int], skip: bool = True) -> str:
    """The whole text; a skipped special token parts the bytes beside it."""
    data = [b"\0" if i == END and skip else PIECES[i] for i in ids]
    return b"".join(data).decode(errors="replace").replace("\0", "")


@given(plain_lists, cut_lists, stop_lists, st.integers(0, 6))
def test_text_and_ids_end_where_the_first_match_begins(
    ids: list[int], cuts: list[int], stops: list[str], min_new_tokens: int
) -> None:
    answer = stream(ids, cuts, stops, LENGTH, min_new_tokens)
    text, searched_from = text_of(ids), len(text_of(ids[:min_new_tokens]))
    matches = [
        (end, -len(stop), stop)
        for stop in stops
        for end in range(searched_from + len(stop), len(text) + 1)
        if text[:end].endswith(stop)
    ]
    if not matches:
        assert (answer.text, answer.ids, answer.finish) == (text, ids, LENGTH)
        return
    end, length, stop = min(matches)
    cut = end + length
    starts = [len(text_of(ids[:i])) for i in range(len(ids) + 1)]
    kept = [token for i, token in enumerate(ids) if starts[i] < cut or starts[i + 1] <= cut]
    assert (answer.text, answer.ids, answer.finish) == (text[:cut], kept, FinishReason("stop", stop))
    assert answer.num_generated == len(kept)


@given(ids_lists, cut_lists, stop_lists, st.booleans(), st.booleans())
def test_the_outcome_does_not_depend_on_the_pieces(
    ids: list[int], cuts: list[int], stops: list[str], ends: bool, skip: bool
) -> None:
    ids, finish = ([*ids, END], STOP) if ends else (ids, LENGTH)
    assert stream(ids, cuts, stops, finish, skip=skip) == stream(ids, [], stops, finish, skip=skip)


@given(plain_lists, cut_lists, st.booleans())
def test_a_stop_id_is_counted_and_has_no_text(ids: list[int], cuts: list[int], skip: bool) -> None:
    answer = stream([*ids, END], cuts, [], STOP, skip=skip)
    assert answer == Answer(text_of(ids), [*ids, END], STOP, len(ids) + 1)


def test_held_text_holds_its_token_back() -> None:
    state = ChoiceState(
        PieceDetokenizer(TABLE, skip_special_tokens=True, continues=False), StopMatcher(StopStrings(["abba"]))
    )
    first = state.add([1, 6, 1], None, None)  # "b" "c a" "b": "ab" may begin the stop string
    assert (first.text, [token.token_id for token in first.tokens]) == ("bc ", [1])
    second = state.add([6], None, None)
    assert (second.text, [token.token_id for token in second.tokens]) == ("abc ", [6, 1])
    last = state.add([], None, FinishReason("abort"))
    assert (last.text, [token.token_id for token in last.tokens]) == ("a", [6])


def test_half_a_character_holds_its_token_back_until_the_end() -> None:
    state = ChoiceState(PieceDetokenizer(TABLE, skip_special_tokens=True, continues=False), None)
    assert state.add([0, 8], None, None).text == "a"
    assert state.num_generated == 1
    last = state.add([END], None, STOP)
    assert (last.text, [token.token_id for token in last.tokens]) == ("\ufffd", [8, END])


def test_a_visible_special_token_that_is_not_the_stop_has_text() -> None:
    assert stream([0, END, 1], [], [], LENGTH, skip=False).text == "a<end>b"
    assert stream([0, END, 1], [], ["<e"], LENGTH, skip=False).finish == FinishReason("stop", "<e")
    assert stream([0, END, 1], [], ["<e"], LENGTH).finish == LENGTH
