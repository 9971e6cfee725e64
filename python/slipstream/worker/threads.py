"""How many threads torch should use on a CPU."""

import os
from pathlib import Path

# Multiply-adds of one layer below which a second thread does not pay. Every product of a layer ends in a barrier: while
# another process has the core that the second thread waits for, the first one waits as well. Measured on two cores with
# 7.7 M parameters in 16 layers, 16 rows (7.7 M a layer): 2 threads gain 10 % when nothing else runs and are 6 times
# slower beside one busy process; 64 rows, 16 slots with 3 drafts each, are 7 times slower then. And a server always has
# its other processes beside the worker.
MIN_LAYER_WORK = 64_000_000


def threads_for_step(num_rows: int, parameters_per_layer: int, num_cores: int) -> int:
    """One thread for small steps, all cores for the others.

    >>> threads_for_step(num_rows=1, parameters_per_layer=480_000, num_cores=8)
    1
    >>> threads_for_step(num_rows=512, parameters_per_layer=480_000, num_cores=8)
    8
    """
    return num_cores if num_rows * parameters_per_layer >= MIN_LAYER_WORK else 1


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
