"""Socket addresses of one run: a fresh directory that only this user can enter."""

import os
import shutil
import tempfile
from pathlib import Path

from slipstream.config.processes import Endpoints

PREFIX = "slipstream-"


def make_endpoints() -> Endpoints:
    """A new directory with mode 0700 and one ipc:// address in it for each receiver.

    The directory's name carries our process id, so that a later run can remove what a killed run left behind.
    """
    base = Path(tempfile.gettempdir())
    remove_leftovers(base)
    directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=base))  # mkdtemp makes it 0700
    return Endpoints(*(f"ipc://{directory / name}" for name in ("server", "tokenizer", "scheduler", "worker")))


def remove_endpoints(endpoints: Endpoints) -> None:
    """Remove the directory of these endpoints."""
    shutil.rmtree(Path(endpoints.server.removeprefix("ipc://")).parent, ignore_errors=True)


def remove_leftovers(base: Path) -> None:
    """Remove socket directories of our own user whose process is gone."""
    for directory in base.glob(f"{PREFIX}[0-9]*-*"):
        pid = int(directory.name.removeprefix(PREFIX).split("-")[0])
        if directory.stat().st_uid == os.getuid() and not _is_alive(pid):
            shutil.rmtree(directory, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
