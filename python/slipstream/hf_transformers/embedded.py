"""Where the model lies that ships with the package."""

from pathlib import Path


def embedded_path() -> Path:
    """The folder of the embedded target checkpoint."""
    return Path(__file__).parent.parent / "embedded"
