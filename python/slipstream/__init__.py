"""Slipstream: a serving runtime for Mistral checkpoints."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slipstream.engine import Answer, Engine

__version__ = "0.1.0"
__all__ = ["Answer", "Engine", "__version__"]


def __getattr__(name: str) -> Any:
    """Load the Engine on first use: child processes import this package and must stay small."""
    if name in ("Answer", "Engine"):
        from slipstream import engine

        return getattr(engine, name)
    raise AttributeError(f"module 'slipstream' has no attribute {name!r}")
