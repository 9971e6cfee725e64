"""A dataclass field is a command-line flag: type, default, help and choices are written once; here they are read."""

import argparse
import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NoReturn, TypeVar

from slipstream.errors import ConfigError

Options = TypeVar("Options")

AUTO: Literal["auto"] = "auto"
Auto = Literal["auto"]


def flag(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    secret: bool = False,
    server_only: bool = False,
    alias: str = "",
    bare: str | None = None,
    read: Callable[[str], str] | None = None,
) -> Any:
    """A dataclass field that is also the flag `--field-name`, and `alias` where that is another name of it.

    `choices` limits a string; `minimum` and `maximum` (inclusive) limit a number; a `secret` is never printed;
    a `server_only` one means nothing to the offline Engine, which refuses it. The flag without a value means `bare`, if
    that is given. `read` stands in for the comparison with
    the choices: it returns the choice that a text means, or raises ValueError with the sentence that says why none.
    """
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "minimum": minimum,
        "maximum": maximum,
        "secret": secret,
        "server_only": server_only,
        "alias": alias,
        "bare": bare,
        "read": read,
    }
    return dataclasses.field(default=default, metadata=metadata)


def flag_name(field_name: str) -> str:
    """`max_running_requests` -> `--max-running-requests`."""
    return "--" + field_name.replace("_", "-")


def add_flags(
    parser: argparse._ActionsContainer, options: type[Any], *, server: bool = True, only: Collection[str] | None = None
) -> None:
    """Add one flag for each field of the dataclass `options` that was made with flag(), to a parser or a group.

    Without `server`, those that only an HTTP server reads are left out; with `only`, all fields but these.
    """
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        if not field.metadata or (field.metadata["server_only"] and not server):
            continue
        if only is not None and field.name not in only:
            continue
        kind = hints[field.name]
        if kind is bool:
            parser.add_argument(
                flag_name(field.name),
                action=argparse.BooleanOptionalAction,
                default=field.default,
                help=field.metadata["help"],
            )
        else:
            alias, bare = field.metadata["alias"], field.metadata["bare"]
            parser.add_argument(
                *(flag_name(field.name), *([alias] if alias else [])),
                default=field.default,
                nargs=None if bare is None else "?",
                const=bare,
                metavar=_metavar(field, kind),
                help=_help(field),
                type=functools.partial(_parse, field=field, kind=kind),
            )


def from_namespace(options: type[Options], namespace: argparse.Namespace) -> Options:
    """Build the options object from parsed flags; those that were not added keep their defaults."""
    fields = [field for field in dataclasses.fields(typing.cast(Any, options)) if field.metadata]
    return options(**{field.name: getattr(namespace, field.name, field.default) for field in fields})


def check_fields(options: Any) -> None:
    """Raise ConfigError for the first field of an options object that is of another kind, or outside its choices or
    limits.
    """
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if not field.metadata:
            continue
        if wanted := _wanted_kind(value, hints[field.name]):
            raise ConfigError(f"{flag_name(field.name)} is {value!r}; it must be {wanted}")
        if value is None or value == AUTO:
            continue
        if value == "":
            raise ConfigError(f"{flag_name(field.name)} is empty; give it a value or leave it out")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{flag_name(field.name)} is {value}; it must be a finite number")
        choices, low, high = (field.metadata[key] for key in ("choices", "minimum", "maximum"))
        if read := field.metadata["read"]:
            try:
                read(value)
            except ValueError as error:
                raise ConfigError(f"{flag_name(field.name)} is {value!r}: {error}") from None
        elif choices and value not in choices:
            raise ConfigError(f"{flag_name(field.name)} is {value!r}; choose one of: {', '.join(choices)}")
        if low is not None and value < low:
            raise ConfigError(f"{flag_name(field.name)} is {value}; it must be at least {low}")
        if high is not None and value > high:
            raise ConfigError(f"{flag_name(field.name)} is {value}; it must be at most {high}")


def _wanted_kind(value: Any, kind: Any) -> str | None:
    """None if `value` is what the type `kind` of a field takes, else that in words. Options may be made in Python.

    >>> _wanted_kind(3, float), _wanted_kind(None, int | None), _wanted_kind(3.0, int | Auto)
    (None, None, "a whole number or 'auto'")
    """
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    members = _members(kind)
    has_auto = any(typing.get_origin(member) is Literal for member in members)
    if (value is None and type(None) in members) or (has_auto and isinstance(value, str) and value == AUTO):
        return None
    wanted = next(member for member in members if member in words)
    is_bool = isinstance(value, bool)  # which Python takes for an int
    if is_bool == (wanted is bool) and isinstance(value, (int, float) if wanted is float else wanted):
        return None
    return words[wanted] + (f" or {AUTO!r}" if has_auto else "")


class FlagParser(argparse.ArgumentParser):
    """An ArgumentParser that takes no abbreviations and names the nearest flag when one is unknown.

    `not_yet` holds beginnings of flags that users know from elsewhere, and what to say of each.
    """

    def __init__(self, *args: Any, not_yet: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(*args, **kwargs)
        self._not_yet = not_yet or {}

    def error(self, message: str) -> NoReturn:
        """One line, instead of pages of usage above it."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            name = unknown[0].split("=")[0]
            if not name.startswith("-"):
                hint = f"; did you mean --model-path {name}?" if "--model-path" in known else ""
                self.error(f"{name!r} stands alone, but every value belongs to a flag{hint}")
            for beginning, sentence in self._not_yet.items():
                if name.startswith(beginning):
                    self.error(f"{name} is not in yet: {sentence}")
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
            self.error(f"unknown flag {unknown[0]}" + (f"; did you mean {near[0]}?" if near else ""))
        return parsed


def _members(kind: Any) -> tuple[Any, ...]:
    return (
        typing.get_args(kind)
        if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
        else (kind,)
    )


def _parse(text: str, field: "dataclasses.Field[Any]", kind: Any) -> Any:
    members = _members(kind)
    if text == AUTO and any(typing.get_origin(member) is Literal for member in members):
        return AUTO
    choices = field.metadata["choices"]
    if read := field.metadata["read"]:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    if choices and text not in choices:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of: {', '.join(choices)}")
    for member in (int, float):
        if member in members:
            try:
                return member(text)
            except ValueError:
                wanted = "a whole number" if member is int else "a number"
                raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None
    return text


def _metavar(field: "dataclasses.Field[Any]", kind: Any) -> str:
    if field.metadata["choices"]:
        return "{" + ",".join(field.metadata["choices"]) + "}"
    members = _members(kind)
    return "N" if int in members else "X" if float in members else "TEXT"


def _help(field: "dataclasses.Field[Any]") -> str:
    return str(field.metadata["help"]).replace("%", "%%")
