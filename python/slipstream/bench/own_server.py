"""A server of our own for one benchmark: started on a free port, stopped at the end."""

import dataclasses
import os
import re
import subprocess
import sys
import threading
from types import TracebackType
from typing import Self

from slipstream.bench.connection import API_KEY_VARIABLE
from slipstream.config.flags import flag_name
from slipstream.config.options import LaunchOptions
from slipstream.errors import WorkerDied

START_TIMEOUT_S = 600.0  # a large checkpoint from a slow disk
STOP_MARGIN_S = 10.0  # beyond --drain-timeout-s
_SERVING = re.compile(r"\bserving \S+ at (https?://\S+)")


def to_flags(options: LaunchOptions) -> list[str]:
    """The command line that gives these options. Secrets are left out: a command line is public."""
    flags = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value == field.default or field.metadata["secret"]:
            continue
        name = flag_name(field.name)
        if isinstance(value, bool):
            flags.append(name if value else name.replace("--", "--no-", 1))
        else:
            flags += [name, str(value)]
    return flags


class OwnServer:
    """`slipstream serve` as a child process. Entering waits until it serves; leaving ends it."""

    def __init__(self, options: LaunchOptions) -> None:
        self._options = options
        self._url: str | None = None
        self._settled = threading.Event()  # the URL is known, or the output has ended

    def __enter__(self) -> Self:
        environment = dict(os.environ, PYTHONUNBUFFERED="1")
        if self._options.api_key is not None:
            environment[API_KEY_VARIABLE] = self._options.api_key
        command = [sys.executable, "-m", "slipstream.launch_server", *to_flags(self._options)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment, text=True
        )
        self._reader = threading.Thread(target=self._forward, daemon=True, name="server-output")
        self._reader.start()
        self._settled.wait(START_TIMEOUT_S)
        if self._url is None:
            self.stop()
            raise WorkerDied("the server did not start; its own lines above say why")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        assert self._url is not None, "the server has not been started"
        return self._url

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for a server that does not end in time."""
        self._process.terminate()
        try:
            self._process.wait(self._options.drain_timeout_s + STOP_MARGIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _forward(self) -> None:
        """Copy what the server prints to stderr, and pick the URL from its last line of starting."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            if self._url is None and (match := _SERVING.search(line)):
                self._url = match[1]
                self._settled.set()
        self._settled.set()
