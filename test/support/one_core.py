"""An Engine inside the test's process that computes with one thread: where many processes share few cores, two threads
wait for each other most of the time.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from slipstream.worker import build
from support.one_thread import one_thread


@contextmanager
def one_core() -> Iterator[None]:
    """For engines and models made within."""
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "usable_cores", lambda: 1)
        yield
