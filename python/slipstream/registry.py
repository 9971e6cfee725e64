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
        self._loaders: dict[str, Callable[[], T]] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: files the decorated class or function under `name`."""

        def add(value: T) -> T:
            self._claim(name)
            self._values[name] = value
            return value

        return add

    def register_loader(self, name: str) -> Callable[[Callable[[], T]], Callable[[], T]]:
        """Decorator: what the decorated function returns is filed under `name`; it is called by the first get().

        For values whose modules need packages that not everybody has.
        """

        def add(load: Callable[[], T]) -> Callable[[], T]:
            self._claim(name)
            self._loaders[name] = load
            return load

        return add

    def get(self, name: str) -> T:
        """The value filed under `name`. Raises ConfigError with the nearest name where there is none, or with the name
        of the package where one is missing.
        """
        if name in self._loaders and name not in self._values:
            try:
                self._values[name] = self._loaders[name]()
            except ModuleNotFoundError as error:
                raise ConfigError(f"{self._noun} {name!r} needs the package {error.name!r}: install it") from error
        if name in self._values:
            return self._values[name]
        near = difflib.get_close_matches(name, self.names(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown {self._noun} {name!r}; known: {', '.join(self.names())}.{hint}")

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._values, *self._loaders})

    def _claim(self, name: str) -> None:
        if name in self._values or name in self._loaders:
            raise ValueError(f"{self._noun} {name!r} is registered twice")
