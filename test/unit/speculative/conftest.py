"""Tiny drafts of every kind that can be loaded; one thread, no gradients."""

from pathlib import Path
from typing import Any

import pytest

from support.checkpoints import PARAMS, reference_model, write_native
from support.draft_checkpoints import write_draft
from support.moe_checkpoints import MLA_PARAMS
from support.one_thread import for_tiny_models as for_tiny_models

DRAFTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # params of the target, and what else the draft has
    "GQA": (PARAMS, {}),
    "windows": (PARAMS, {"sliding_window": [5, None]}),
    "MLA": (MLA_PARAMS, {}),
    "MLA with experts": (MLA_PARAMS, {"experts": True}),
}


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By kind: folders of a target and of its draft. Of the target only embedding and head matter."""
    folder = tmp_path_factory.mktemp("pairs")
    target = write_native(folder / "target", reference_model())
    return {
        kind: (target, write_draft(folder / kind, params, seed=11, **changes))
        for kind, (params, changes) in DRAFTS.items()
    }
