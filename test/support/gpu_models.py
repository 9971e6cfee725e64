"""Models, workers and engines for the tests of test/gpu: small, and of few shapes, since every shape is compiled."""

import gc
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from slipstream import Engine
from slipstream.config.drafting import DraftShape
from slipstream.config.processes import WorkerDrafts
from slipstream.messages.to_server import ToServer
from slipstream.messages.to_tokenizer import SchedulerStatus
from slipstream.worker.device_worker import DeviceWorker
from support.checkpoints import reference_model, write_native
from support.device_workers import load_device_worker
from support.draft_checkpoints import write_copying_draft
from support.tiny_pair import VOCAB_SIZE, write_byte_tokenizer

DEVICE = "cuda"
SHAPE: dict[str, Any] = {
    "dim": 256,
    "n_layers": 2,
    "head_dim": 64,
    "hidden_dim": 512,
    "n_heads": 8,
    "n_kv_heads": 2,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 2048,
}
PAGE_SIZE = 16
PAGES_EACH = 32  # of each slot
MAX_SLOTS = 16
CONTEXT = 1024  # so long that the keys of a request are split among programs


def write_gpu_pair(folder: Path, *, noise: float = 0.02, **changes: Any) -> tuple[Path, Path]:
    """A random GQA target and a draft that is right often, with a tokenizer of bytes; `changes` go into params.json."""
    shape = SHAPE | changes
    target = write_native(folder / "target", reference_model(**shape), **shape)
    write_byte_tokenizer(target / "tekken.json")
    return target, write_copying_draft(folder / "draft", target, noise=noise)


def free_gpu() -> None:
    """Give back what dead workers held: torch keeps it, and a new worker would find no free memory."""
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def load_gpu_worker(target: Path, draft: Path | None = None, depth: int = 3, **changes: Any) -> DeviceWorker:
    """Without graphs; see capture()."""
    free_gpu()
    drafts = WorkerDrafts("EAGLE", DraftShape(depth, 1, depth), 2, model_path=str(draft)) if draft else None
    values: dict[str, Any] = {
        "device": DEVICE,
        "page_size": PAGE_SIZE,
        "context_length": CONTEXT,
        "max_running_requests": MAX_SLOTS,
        "chunked_prefill_size": 128,
        "max_total_tokens": MAX_SLOTS * PAGES_EACH * PAGE_SIZE,
        "drafts": drafts,
    }
    return load_device_worker(target, **(values | changes))


def pages_of(slot: int) -> list[int]:
    return list(range(1 + PAGES_EACH * slot, 1 + PAGES_EACH * (slot + 1)))


def prompt_of(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(64, VOCAB_SIZE), k=length)


class WatchedEngine(Engine):
    """Remembers the scheduler's last heartbeat."""

    last_status: SchedulerStatus | None = None

    def _on_message(self, message: ToServer) -> None:
        if isinstance(message, SchedulerStatus):
            self.last_status = message
        super()._on_message(message)


@contextmanager
def gpu_engine(target: Path | str | None, draft: Path | str | None, **changes: Any) -> Iterator[WatchedEngine]:
    """An engine in this process, with graphs; for a `target` without a `draft` nothing is drafted. None is the pair
    that ships with Slipstream, for which "none" says that nothing is drafted.
    """
    free_gpu()
    values: dict[str, Any] = {"device": DEVICE, "random_seed": 1, "context_length": CONTEXT, "log_level": "error"}
    values["max_running_requests"] = MAX_SLOTS
    if DEVICE == "cuda":
        values["attention_backend"] = "triton"  # flashinfer compiles for a minute, and has tests of its own
    if draft == "none" or (target is not None and draft is None):
        values["speculative_algorithm"] = "none"
    else:
        values |= {"speculative_adaptive": "off", "speculative_num_steps": 3}
        values["speculative_draft_model_path"] = None if draft is None else str(draft)
    with WatchedEngine(None if target is None else str(target), **(values | changes)) as engine:
        yield engine
    free_gpu()


def idle_status(engine: WatchedEngine, timeout_s: float = 10.0) -> SchedulerStatus:
    """A heartbeat that was sent when nothing ran any more."""
    deadline = time.monotonic() + timeout_s
    while True:
        engine.last_status = None
        while engine.last_status is None:
            time.sleep(0.02)
            assert time.monotonic() < deadline, "the scheduler is silent"
        status: SchedulerStatus = engine.last_status
        if status.num_running == status.num_waiting == 0 and status.step_in_flight_s == 0:
            return status
        assert time.monotonic() < deadline, f"not idle: {status}"
