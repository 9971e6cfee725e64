"""Where the last few tokens of a text occurred before in it."""

from collections.abc import Iterable


class NgramIndex:
    """A text that grows, and for each run of `shortest` to `longest` tokens in it what followed where it occurred last.

    A new token costs one dictionary entry for each length, however long the text is.
    """

    def __init__(self, shortest: int, longest: int) -> None:
        self._lengths = range(longest, shortest - 1, -1)
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # run of tokens -> position of the token after it

    def append(self, token_ids: Iterable[int]) -> None:
        """Lengthen the text. A run is filed only once there is a token after it, so the last one finds earlier ones."""
        tokens = self._tokens
        for token_id in token_ids:
            end = len(tokens)
            for length in self._lengths:
                if length <= end:
                    self._next[tuple(tokens[end - length :])] = end
            tokens.append(token_id)

    def continuation(self, count: int) -> list[int]:
        """The next `count` tokens if the text goes on as it did where its longest known end last occurred; none where
        no end of it occurred before.

        Where the earlier text runs out, the continuation goes on with itself:

        >>> index = NgramIndex(shortest=1, longest=3)
        >>> index.append([5, 1, 2, 3, 1, 2])
        >>> index.continuation(2), index.continuation(5)
        ([3, 1], [3, 1, 2, 3, 1])
        """
        tokens = self._tokens
        end = len(tokens)
        for length in self._lengths:
            if length <= end and (begin := self._next.get(tuple(tokens[end - length :]))) is not None:
                return [tokens[begin + offset % (end - begin)] for offset in range(count)]
        return []
