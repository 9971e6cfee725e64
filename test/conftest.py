"""Without a GPU, kernels run through Triton's interpreter: it reads this variable when it is imported."""

import gc
import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_sessionfinish() -> None:
    """Processes freeze what they have loaded, and so do tests that run their main loops: undone, so that everything is
    freed in order at the end.
    """
    gc.unfreeze()
