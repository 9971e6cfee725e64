"""How fast known GPUs are at best, and which GPU is here."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

_QUERY = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class DeviceSpeed:
    """What floors are computed with; None: not known."""

    bandwidth_gbs: float  # of the memory, in GB/s
    bf16_tflops: float | None = None  # of large matrix products


# As measured, not as advertised: large copies, read and written bytes together; a bf16 product of 8192 x 8192 x 8192.
DEVICE_SPEEDS: Mapping[str, DeviceSpeed] = {"NVIDIA H200": DeviceSpeed(4300.0, 790.0)}


def gpu_name() -> str | None:
    """The name of this machine's GPUs by the driver; None where there is none, or where they differ."""
    try:
        found = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    names = {line.strip() for line in found.splitlines() if line.strip()}
    return names.pop() if len(names) == 1 else None
