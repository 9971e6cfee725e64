"""The worker process: load, then one result for each plan."""

import gc
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
POLL_S = 20e-6  # how long the end of a step may go unnoticed where threads share a process
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
        # A step that the device works on ends without a message, and the shortest sleep takes a tenth of a millisecond:
        # look all the time, but let others have the processor.
        if worker.num_pending == 0:
            inbox.wait(_WAIT_S)
        elif not inbox.wait(0.0):
            time.sleep(0.0)
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
    last_report_s, text = 0.0, "loading tensors"

    def report_graphs(done: int, total: int) -> None:
        nonlocal text, last_report_s
        text = "capturing CUDA graphs"
        if done == 1:
            last_report_s = 0.0
        report(done, total)

    def report(done: int, total: int) -> None:
        nonlocal last_report_s, text
        now = time.monotonic()
        if done == total or now - last_report_s >= _PROGRESS_S:
            last_report_s = now
            to_server.put(Progress(PROCESS, text, done, total))
        if done == total:  # the target is there; what comes now is the draft's
            text = "loading the draft's tensors"

    return build_worker(config, spec, draft, report, report_graphs)


def _source(spec: CheckpointSpec) -> str:
    return spec.path if spec.tensors else f"random weights of the size of {spec.path}"
