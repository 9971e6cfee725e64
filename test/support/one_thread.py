"""Tiny tensors are computed fastest on one thread: more would only wait for each other."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch computes on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def for_tiny_models() -> Iterator[None]:
    """One thread, and no gradients, for all tests of a folder whose conftest imports this."""
    with one_thread(), torch.inference_mode():
        yield
