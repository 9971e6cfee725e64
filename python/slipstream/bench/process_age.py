"""Seconds since this process was started, the interpreter's own start among them."""

import os
import time
from pathlib import Path

_IMPORTED_S = time.perf_counter()
_MAX_BEFORE_IMPORT_S = 60.0  # no start of an interpreter takes longer: the kernel's number is then about something else
_TICK_S = 0.02  # how coarse that number is
_START_FIELD = 19  # of /proc/self/stat after the name, in clock ticks since the machine's start: proc(5)


def process_age_s() -> float:
    """By the kernel's account where it gives a plausible one, else since this module was imported."""
    since_import_s = time.perf_counter() - _IMPORTED_S
    stat = Path("/proc/self/stat")
    if not stat.is_file():
        return since_import_s
    started_ticks = int(stat.read_text().rpartition(")")[2].split()[_START_FIELD])
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")
    before_import_s = age_s - since_import_s
    return age_s if -_TICK_S <= before_import_s <= _MAX_BEFORE_IMPORT_S else since_import_s
