"""An Engine inside the test's process that computes with one thread: where many processes share few cores, two threads
wait for each other most of the time.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from slipstream.worker import build


@contextmanager
def one_core() -> Iterator[None]:
    """For engines and models made within."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "usable_cores", lambda: 1)
        yield
    torch.set_num_threads(threads)
