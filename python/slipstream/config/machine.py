"""What this machine is, found out without importing torch."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """Facts that `auto` values depend on."""

    has_cuda: bool
    has_bf16_instructions: bool  # of the CPU: AMX or AVX-512 bf16 dot products
    num_cores: int
    memory_bytes: int


def probe_machine() -> Machine:
    """Look at this machine. Costs well under a millisecond."""
    return Machine(
        has_cuda=Path("/dev/nvidiactl").exists() or Path("/dev/nvidia0").exists(),
        has_bf16_instructions=bool(_cpu_flags() & {"avx512_bf16", "amx_bf16"}),
        num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def _cpu_flags() -> set[str]:
    if platform.system() != "Linux":
        return set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()
