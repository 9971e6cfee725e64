"""A DeviceWorker, on the CPU with kernels in Triton's interpreter, on a GPU for real."""

from pathlib import Path
from typing import Any

import torch

from slipstream.worker.device_build import make_device_worker
from slipstream.worker.device_worker import DeviceWorker
from support.running_worker import load_worker, worker_config


def load_device_worker(path: Path | str, **changes: Any) -> DeviceWorker:
    """As load_worker(). On the CPU its programs run without graphs."""
    on_cpu = torch.device(changes.get("device", "cpu")).type == "cpu"
    short = {"chunked_prefill_size": 16} if on_cpu else {}  # the longest prefill is tried at the start: seconds, here
    changes = {"attention_backend": "triton"} | short | changes
    worker = load_worker(path, **changes)
    if not on_cpu:
        assert isinstance(worker, DeviceWorker)
        return worker
    return make_device_worker(worker.parts, worker_config(path, **changes), lambda done, total: None)
