"""How much memory a device has, and how much of it is free."""

from dataclasses import dataclass
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Bytes of one device."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class DeviceUse:
    """Of a GPU, in bytes: what this process's tensors take, what torch holds for them, and what the device has."""

    allocated_bytes: int
    reserved_bytes: int
    free_bytes: int
    total_bytes: int


def device_use(device: torch.device) -> DeviceUse:
    """Of a CUDA device."""
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return DeviceUse(torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device), free_bytes, total_bytes)


def device_memory(device: torch.device) -> Memory:
    """Of a GPU what its driver says; of the CPU what this process's container may use."""
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        return Memory(total_bytes, free_bytes)
    machine = parse_meminfo(Path("/proc/meminfo").read_text())
    limit = _read_number(_CGROUP / "memory.max", _CGROUP / "memory" / "memory.limit_in_bytes")
    used = _read_number(_CGROUP / "memory.current", _CGROUP / "memory" / "memory.usage_in_bytes")
    if limit is None or used is None or limit >= machine.total_bytes:
        return machine
    return Memory(limit, min(machine.free_bytes, max(limit - used, 0)))


def parse_meminfo(text: str) -> Memory:
    """/proc/meminfo -> Memory.

    >>> parse_meminfo("MemTotal: 8 kB\\nMemFree: 1 kB\\nMemAvailable: 4 kB\\n")
    Memory(total_bytes=8192, free_bytes=4096)
    """
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return Memory(*(int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable")))


def _read_number(*paths: Path) -> int | None:
    """The number in the first of the files that exists; None where there is none or it says "max"."""
    for path in paths:
        if path.is_file():
            text = path.read_text().strip()
            return int(text) if text.isdigit() else None
    return None
