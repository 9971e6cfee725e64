"""The worker process: load, then one result for each plan."""

import gc
import os
import time
from collections.abc import Callable
from typing import Any

from slipstream.config.processes import WorkerConfig
from slipstream.hf_transformers.inspect import inspect_checkpoint, inspect_draft
from slipstream.hf_transformers.spec import CheckpointSpec
from slipstream.messages.queues import Inbox, Outbox
from slipstream.messages.to_scheduler import StepResult, WorkerReady
from slipstream.messages.to_server import ChildStatus, Progress, Stage
from slipstream.messages.to_worker import ToWorker
from slipstream.worker.build import build_worker
from slipstream.worker.worker import Worker

PROCESS = "worker"
_WAIT_S = 0.1  # how long a stop may go unnoticed while idle
_PROGRESS_S = 0.1  # between two progress messages


def run(
    config: WorkerConfig,
    inbox: Inbox[ToWorker],
    to_scheduler: Outbox[WorkerReady | StepResult],
    to_server: Outbox[ChildStatus],
    stop: Callable[[], bool],
) -> None:
    """Serve plans until `stop()`. Errors of loading and of the machine end the process: the caller reports them."""
    worker = load_worker(config, to_server)
    gc.collect()
    gc.freeze()  # what is here now stays: looking through all of torch's objects takes longer than a step
    to_scheduler.put(worker.ready)
    while not stop():
        # A step that the device works on ends without a message, and the shortest sleep takes a tenth of a millisecond,
        # even of no time at all: look all the time, but let others have the processor.
        if worker.num_pending == 0:
            inbox.wait(_WAIT_S)
        elif not inbox.wait(0.0):
            os.sched_yield()
        for plan in inbox.drain():
            worker.submit(plan)
            send_finished(worker, to_scheduler)
        send_finished(worker, to_scheduler)


def send_finished(worker: Worker, to_scheduler: Outbox[Any]) -> None:
    """Everything that is done."""
    for result in worker.finished():
        to_scheduler.put(result)


def load_worker(config: WorkerConfig, to_server: Outbox[ChildStatus]) -> Worker:
    spec = inspect_checkpoint(
        config.model_path,
        config.load_format,
        config.tokenizer_path,
        config_format=config.config_format,
        needs_tokenizer=False,
    )
    draft = None
    if config.drafts is not None and config.drafts.model_path is not None:
        draft = inspect_draft(config.drafts.model_path, config.drafts.load_format)
    to_server.put(Stage(PROCESS, f"loading {_source(spec)}" + (f" and {_source(draft)}" if draft else "")))
    progress = _LoadProgress(to_server)
    return build_worker(config, spec, draft, progress.tensors, progress.graphs)


class _LoadProgress:
    """Tells the server how far a start has come, not more often than anybody looks."""

    def __init__(self, to_server: Outbox[ChildStatus]) -> None:
        self._to_server = to_server
        self._text, self._last_report_s = "", 0.0
        self._has_target = False

    def tensors(self, done: int, total: int) -> None:
        """Of the target, then of the draft."""
        self._report("loading the draft's tensors" if self._has_target else "loading tensors", done, total)
        self._has_target |= done == total

    def graphs(self, done: int, total: int) -> None:
        self._report("capturing CUDA graphs", done, total)

    def _report(self, text: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or text != self._text or now - self._last_report_s >= _PROGRESS_S:
            self._text, self._last_report_s = text, now
            self._to_server.put(Progress(PROCESS, text, done, total))


def _source(spec: CheckpointSpec) -> str:
    return spec.path if spec.tensors else f"random weights of the size of {spec.path}"
