"""Socket addresses of one run: a fresh directory that only this user can enter."""

import contextlib
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

from slipstream.config.processes import Endpoints
from slipstream.errors import ConfigError

PREFIX = "slipstream-"
LEFTOVER = re.compile(PREFIX + r"(\d{1,9})-")
MAX_PATH_BYTES = 100  # a socket's path may have 107 bytes on Linux and 103 elsewhere


def make_endpoints() -> Endpoints:
    """A new directory with mode 0700 and one ipc:// address in it for each receiver.

    The directory's name carries our process id, so that a later run can remove what a killed run left behind.
    """
    base = Path(tempfile.gettempdir())
    if len(os.fsencode(base)) > MAX_PATH_BYTES - 50:
        raise ConfigError(f"the folder for temporary files, {base}, has too long a path for sockets; set TMPDIR=/tmp")
    remove_leftovers(base)
    directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=base))  # mkdtemp makes it 0700
    return Endpoints(*(f"ipc://{directory / name}" for name in ("server", "tokenizer", "scheduler", "worker")))


def remove_endpoints(endpoints: Endpoints) -> None:
    """Remove the directory of these endpoints."""
    shutil.rmtree(Path(endpoints.server.removeprefix("ipc://")).parent, ignore_errors=True)


def remove_leftovers(base: Path) -> None:
    """Remove socket directories of our own user whose process is gone. Anything else by such a name is let be."""
    for path in base.iterdir():
        found = LEFTOVER.match(path.name)
        if found is None or _is_alive(int(found[1])):
            continue
        with contextlib.suppress(OSError):  # it is not ours, or another server is removing it now
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
                shutil.rmtree(path)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
