"""A flag's value, and why it is that one."""

from collections.abc import Callable
from typing import Any

from slipstream.config.flags import AUTO
from slipstream.config.options import LaunchOptions


class Chooser:
    """Takes the user's value or works one out, and keeps the reason.

    `reasons` maps a flag's field name to (value, why).
    """

    def __init__(self, options: LaunchOptions) -> None:
        self._options = options
        self.reasons: dict[str, tuple[Any, str]] = {}

    def choose(self, field: str, auto: Callable[[], tuple[Any, str]] | None = None) -> Any:
        """The value of `field`; where it is auto or unset, `auto()` gives (value, reason)."""
        value = getattr(self._options, field)
        if auto is not None and (value == AUTO or value is None):
            value, reason = auto()
        else:
            reason = "default" if value == type(self._options).__dataclass_fields__[field].default else "as given"
        self.reasons[field] = (value, reason)
        return value
