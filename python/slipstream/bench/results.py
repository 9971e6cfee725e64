"""Figures worth keeping: JSON lines in bench/results/, and how a figure compares with its target."""

import datetime
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from slipstream.config.machine import probe_machine
from slipstream.errors import ConfigError

_TARGET = re.compile(r"(>=|<=)\s*(\d+(?:\.\d+)?)\Z")


class Result(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One figure. `target` is like ">= 1.2" or "<= 3.6", in `unit`; None: measured to be known."""

    date: str  # YYYY-MM-DD
    commit: str
    machine: str
    command: str
    case: str
    value: float
    unit: str
    compared_with: str | None = None
    target: str | None = None
    details: dict[str, Any] = {}  # versions, every run


def meets(value: float, target: str | None) -> bool | None:
    """Whether the value reaches the target; None without one. Raises ConfigError for an unreadable target."""
    if target is None:
        return None
    match = _TARGET.match(target)
    if match is None:
        raise ConfigError(f"the target {target!r} cannot be read; write it like '>= 1.2' or '<= 3.6'")
    return value >= float(match[2]) if match[1] == ">=" else value <= float(match[2])


def append(path: Path, results: Sequence[Result]) -> None:
    """Add results to a file of JSON lines, which is made if it is not there."""
    lines = b"".join(msgspec.json.encode(result) + b"\n" for result in results)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(lines)


def read(path: Path) -> list[Result]:
    """The results of one file, oldest first. Raises ConfigError naming the line that is wrong."""
    results = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            results.append(msgspec.json.decode(line, type=Result))
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path.name}, line {number}: {error}") from None
    return results


def today() -> str:
    """The date in UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def current_commit(repository: Path) -> str:
    """The short hash of HEAD, with "+" when tracked files differ from it; "unknown" outside a git checkout."""
    git = ["git", "-C", str(repository)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")


def this_machine() -> str:
    """Processor, cores and memory: what speed depends on, and nothing that says whose machine it is."""
    machine = probe_machine()
    return f"{_processor()}, {machine.num_cores} cores, {machine.memory_bytes / 2**30:.0f} GiB"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return os.uname().machine


def command_line(program: str, arguments: Sequence[str]) -> str:
    """A command as one line. Of absolute paths only the last part is kept: the others are this machine's own."""
    return shlex.join([program, *(Path(text).name if text.startswith("/") else text for text in arguments)])
