"""Values by name, some of them loaded when they are first asked for."""

import pytest

from slipstream.errors import ConfigError
from slipstream.registry import Registry


def test_a_loader_is_called_once_and_only_when_asked_for() -> None:
    registry: Registry[object] = Registry("thing")
    calls: list[str] = []

    @registry.register_loader("late")
    def load() -> object:
        calls.append("late")
        return object()

    registry.register("early")(1)
    assert registry.names() == ["early", "late"] and registry.get("early") == 1 and not calls
    assert registry.get("late") is registry.get("late") and calls == ["late"]


def test_a_missing_package_is_named() -> None:
    registry: Registry[object] = Registry("thing")

    @registry.register_loader("late")
    def load() -> object:
        raise ModuleNotFoundError("No module named 'elsewhere'", name="elsewhere")

    with pytest.raises(ConfigError, match="thing 'late' needs the package 'elsewhere'"):
        registry.get("late")


def test_names_are_unique_and_near_ones_are_offered() -> None:
    registry: Registry[object] = Registry("thing")
    registry.register_loader("late")(object)
    for register in (registry.register, registry.register_loader):
        with pytest.raises(ValueError, match="'late' is registered twice"):
            register("late")(object)
    with pytest.raises(ConfigError, match="Did you mean 'late'"):
        registry.get("lat")
