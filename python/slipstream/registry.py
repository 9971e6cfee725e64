"""One registry type for everything that is chosen by name."""

import difflib
from collections.abc import Callable
from typing import Generic, TypeVar

from slipstream.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to values. Duplicate names raise; an unknown name's error lists the known ones."""

    def __init__(self, noun: str) -> None:
        self._noun = noun
        self._values: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: files the decorated class or function under `name`."""

        def add(value: T) -> T:
            if name in self._values:
                raise ValueError(f"{self._noun} {name!r} is registered twice")
            self._values[name] = value
            return value

        return add

    def get(self, name: str) -> T:
        """The value filed under `name`; raises ConfigError with the nearest name otherwise."""
        if name in self._values:
            return self._values[name]
        near = difflib.get_close_matches(name, self._values, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown {self._noun} {name!r}; known: {', '.join(self.names())}.{hint}")

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._values)
