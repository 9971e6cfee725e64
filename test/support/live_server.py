"""A real server in its own process, for end-to-end and fault tests."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

import httpx
import psutil

MODEL = "slipstream-embedded"
START_TIMEOUT_S = 60.0


class LiveServer:
    """`python -m slipstream.launch_server --port 0` with more flags. Use it in a `with`."""

    def __init__(self, *flags: str, environment: dict[str, str] | None = None) -> None:
        self.flags = flags
        self.environment = environment or {}
        self.lines: list[str] = []
        self.url = ""
        self._listening = threading.Event()

    def start(self, wait: bool = True) -> Self:
        command = [sys.executable, "-m", "slipstream.launch_server", "--port", "0", *self.flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **self.environment}
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if wait and not self._listening.wait(START_TIMEOUT_S):
            self.kill()
            raise AssertionError("the server did not start:\n" + self.output)
        if wait and not self.url:
            raise AssertionError("the server ended:\n" + self.output)
        return self

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def children(self) -> dict[str, psutil.Process]:
        """Child processes by role."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it may end while we look
                words = child.cmdline()
                if "slipstream.launch.child" in words:
                    found[words[-1]] = child
        return found

    def wait(self, timeout_s: float) -> int:
        """The exit code."""
        code = self.process.wait(timeout_s)
        self._reader.join(5.0)
        return code

    def terminate(self, timeout_s: float = 20.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """End everything, whatever state it is in."""
        processes: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            processes = [*self.children.values()]
        self.process.kill()
        self.process.wait()
        for process in processes:
            if process.is_running():
                process.kill()

    def status(self) -> dict[str, int]:
        """The scheduler's last heartbeat."""
        answer: dict[str, int] = httpx.get(f"{self.url}/get_server_info", timeout=10).json()["internal_states"][0]
        return answer

    def wait_for_status(self, timeout_s: float = 10.0, **wanted: int) -> dict[str, int]:
        """Until every named count of the heartbeat has the wanted value."""
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status()
            if all(status[name] == value for name, value in wanted.items()):
                return status
            assert time.monotonic() < deadline, f"{wanted} was not reached: {status}"
            time.sleep(0.05)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        if self.process.stdout is not None:
            self._reader.join(5.0)
            self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if found := re.search(r"serving \S+ at (http://\S+)", line):
                self.url = found.group(1)
                self._listening.set()
        self._listening.set()


def alive(pids: list[int]) -> list[int]:
    """Those of `pids` that still run (a zombie does not)."""
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def wait_until_gone(pids: list[int], timeout_s: float) -> list[int]:
    """Wait for all `pids` to end; returns those that did not."""
    deadline = time.monotonic() + timeout_s
    while (left := alive(pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def tiny_checkpoint(folder: Path, **changes: object) -> Path:
    """A checkpoint folder with params.json and the embedded tokenizer, for --load-format dummy."""
    import json
    import shutil

    from slipstream.hf_transformers.embedded import embedded_path

    params = json.loads((embedded_path() / "params.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps({**params, **changes}))
    shutil.copy(embedded_path() / "tekken.json", folder / "tekken.json")
    return folder
