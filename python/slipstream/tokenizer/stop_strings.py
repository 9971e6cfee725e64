"""Stop strings in a stream of text: the earliest match, and how much text may still become one."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


class StopStrings:
    """Several stop strings as one automaton (Aho and Corasick, "Efficient string matching", 1975).

    A state stands for the longest end of the text so far that begins a stop string. Built once for a request, shared
    by its choices.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]  # edges of the trie
        self._fallback = [0]  # state of the longest proper suffix that is also a beginning
        self.depth = [0]  # characters of the text that the state holds
        self.matched: list[str | None] = [None]  # the longest stop string that ends in this state
        for stop in stops:
            if stop:
                self._insert(stop)
        self._link()

    def step(self, state: int, character: str) -> int:
        """The state after one more character. Amortised constant time."""
        while character not in self._next[state]:
            if state == 0:
                return 0
            state = self._fallback[state]
        return self._next[state][character]

    def _insert(self, stop: str) -> None:
        state = 0
        for character in stop:
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._fallback.append(0)
                self.depth.append(self.depth[state] + 1)
                self.matched.append(None)
            state = self._next[state][character]
        self.matched[state] = stop

    def _link(self) -> None:
        """Fill in the fallbacks, nearest states first; a state without a match of its own takes its fallback's."""
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            self.matched[state] = self.matched[state] or self.matched[self._fallback[state]]
            for character, child in self._next[state].items():
                self._fallback[child] = self.step(self._fallback[state], character)
                queue.append(child)


@dataclass(frozen=True)
class StopMatch:
    """`stop` was found; it ends with character number `end` (from 1) of the text fed last."""

    stop: str
    end: int


class StopMatcher:
    """Follows one text. The match that completes first wins; of several that complete together, the longest.

    So what is found does not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: StopStrings) -> None:
        self._stops = stops
        self._state = 0

    @property
    def num_held(self) -> int:
        """Characters at the end of the text that may be the beginning of a stop string."""
        return self._stops.depth[self._state]

    def feed(self, text: str) -> StopMatch | None:
        """The first match that `text` completes. After a match the matcher is used up."""
        stops, state = self._stops, self._state
        for i, character in enumerate(text):
            state = stops.step(state, character)
            matched = stops.matched[state]
            if matched is not None:
                return StopMatch(matched, i + 1)
        self._state = state
        return None
