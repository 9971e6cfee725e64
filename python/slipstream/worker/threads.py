"""How many threads torch should use on a CPU."""

import os
from pathlib import Path


def usable_cores() -> int:
    """Physical cores that this process may run on. Two threads on one core share its vector units and gain nothing."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cpuinfo = Path("/proc/cpuinfo")
    return count_physical_cores(cpuinfo.read_text() if cpuinfo.is_file() else "", allowed)


def count_physical_cores(cpuinfo: str, allowed: set[int]) -> int:
    """Distinct (socket, core) pairs among the `allowed` processors; every processor counts where none are stated.

    >>> count_physical_cores("processor: 0\\ncore id: 0\\n\\nprocessor: 1\\ncore id: 0\\n", {0, 1})
    1
    """
    cores = set()
    for block in cpuinfo.split("\n\n"):
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        if "core id" in fields and int(fields["processor"]) in allowed:
            cores.add((fields.get("physical id", "0"), fields["core id"]))
    return len(cores) or len(allowed)
