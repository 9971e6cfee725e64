"""Where the model lies that ships with the package."""

from pathlib import Path


def embedded_path() -> Path:
    """The folder of the embedded target checkpoint."""
    return Path(__file__).parent.parent / "embedded"


def embedded_draft_path() -> Path | None:
    """The folder of the draft for it; None where none is there."""
    folder = embedded_path() / "draft"
    return folder if folder.is_dir() else None
