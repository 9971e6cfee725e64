"""Takes a configuration apart key by key, so that no key is misread, defaulted in silence or ignored."""

import difflib
import math
from collections.abc import Mapping
from typing import Any

MAX_SIZE = 2**24  # of any one dimension; the largest published vocabulary is below 2^19
MAX_LAYERS = 4096
MAX_TOKENS = 2**30


class Keys:
    """The keys of one JSON object. Each method takes one key; what is wrong becomes a sentence in `problems`.

    A method that finds a problem returns a harmless value, so that one pass finds every problem.
    Call finish() last: it reports the keys that nobody took.
    """

    def __init__(self, where: str, values: Mapping[str, Any], problems: list[str]) -> None:
        self._where = where
        self._values = values
        self._problems = problems
        self._taken: set[str] = set()

    def raw(self, name: str) -> Any:
        """The value of `name` as it stands; None when absent or null."""
        self._taken.add(name)
        return self._values.get(name)

    def integer(self, name: str, *, maximum: int = MAX_SIZE, default: int | None = None) -> int:
        """A whole number from 1 to `maximum`; without a default the key is required."""
        value = self.raw(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            self._wrong(name, value, "a whole number")
        elif not 1 <= value <= maximum:
            self._wrong(name, value, f"between 1 and {maximum}")
        else:
            return value
        return 1

    def number(self, name: str, *, default: float | None = None) -> float:
        """A finite number above 0; without a default the key is required."""
        value = self.raw(name)
        if value is None and default is not None:
            return default
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
            return float(value)
        self._wrong(name, value, "a finite number above 0")
        return 1.0

    def boolean(self, name: str, *, default: bool) -> bool:
        """true or false."""
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self._wrong(name, value, "true or false")
            return default
        return value

    def expect(self, name: str, *accepted: Any) -> None:
        """The key is absent, null or one of the `accepted` values."""
        value = self.raw(name)
        if value is None:
            return
        if not any(type(value) is type(option) and value == option for option in accepted):
            shown = " or ".join(repr(option) for option in accepted)
            self._problems.append(f"{self._where}: {name} is {_shown(value)}; only {shown} is supported")

    def refuse(self, name: str, sentence: str) -> None:
        """The key is absent or null; otherwise `sentence` says what is not supported."""
        if self.raw(name) is not None:
            self._problems.append(f"{self._where}: {name}: {sentence}")

    def ignore(self, *names: str) -> None:
        """Keys that do not change what the model computes."""
        self._taken.update(names)

    def finish(self) -> None:
        """Report every key that was not taken, with the nearest known name."""
        for name in [name for name in self._values if name not in self._taken][:20]:
            near = difflib.get_close_matches(name[:200], self._taken, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            self._problems.append(f"{self._where}: unknown key {name[:200]!r}{hint}")

    def _wrong(self, name: str, value: Any, wanted: str) -> None:
        said = "is missing" if name not in self._values else f"is {_shown(value)}"
        self._problems.append(f"{self._where}: {name} {said}; it must be {wanted}")


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."
