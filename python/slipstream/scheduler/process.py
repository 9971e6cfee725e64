"""The scheduler's main loop: receive, plan, send, reply. One inbox brings requests and results alike."""

import gc
import time
from collections.abc import Callable

from slipstream.config.processes import SchedulerConfig
from slipstream.errors import WorkerDied
from slipstream.log import get_logger
from slipstream.messages.queues import Inbox, Outbox
from slipstream.messages.to_scheduler import StepResult, ToScheduler, WorkerReady
from slipstream.messages.to_tokenizer import FromScheduler, SchedulerReady
from slipstream.messages.to_worker import Plan
from slipstream.scheduler.scheduler import Scheduler

logger = get_logger(__name__)

HEARTBEAT_S = 0.5


class SchedulerLoop:
    """A Scheduler and its queues. turn() is one round; it can be called from any loop.

    `strict` raises on a broken page count instead of logging and healing it: for tests.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        inbox: Inbox[ToScheduler],
        to_worker: Outbox[Plan],
        to_tokenizer: Outbox[FromScheduler],
        *,
        strict: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._inbox = inbox
        self._to_worker = to_worker
        self._to_tokenizer = to_tokenizer
        self._strict = strict
        self._clock = clock
        self._scheduler: Scheduler | None = None  # until the worker has said how many pages there are
        self._next_heartbeat = 0.0
        self._was_idle = True

    def turn(self, timeout_s: float) -> None:
        """Wait for messages up to `timeout_s`, then receive, plan, send and reply."""
        self._inbox.wait(timeout_s)
        for message in self._inbox.drain():
            self._receive(message)
        if self._scheduler is None:
            return
        while (plan := self._scheduler.plan(self._clock())) is not None:
            self._to_worker.put(plan)
        for output in self._scheduler.take_outputs():
            self._to_tokenizer.put(output)
        self._check_when_idle(self._scheduler)
        self._beat(self._scheduler)

    def _receive(self, message: ToScheduler) -> None:
        match message:
            case WorkerReady():
                self._start(message)
            case StepResult():
                assert self._scheduler is not None
                self._scheduler.collect(message)
            case _:
                assert self._scheduler is not None, "the tokenizer sends nothing before SchedulerReady"
                self._scheduler.handle(message)

    def _start(self, ready: WorkerReady) -> None:
        self._scheduler = Scheduler(self._config, ready.num_pages)
        self._to_tokenizer.put(
            SchedulerReady(
                max_sequence_len=self._scheduler.max_sequence_len,
                num_pages=ready.num_pages - 1,
                page_size=self._config.page_size,
                worker=ready.info,
            )
        )

    def _check_when_idle(self, scheduler: Scheduler) -> None:
        """Count pages and slots each time the last request has left."""
        is_idle = scheduler.is_idle
        if is_idle and not self._was_idle:
            self._next_heartbeat = 0.0
            if problem := scheduler.check_integrity():
                if self._strict:
                    raise WorkerDied(f"integrity: {problem}")
                logger.error("integrity: %s; starting over with an empty cache", problem)
                scheduler.heal()
        self._was_idle = is_idle

    def _beat(self, scheduler: Scheduler) -> None:
        now = self._clock()
        if now >= self._next_heartbeat:
            self._to_tokenizer.put(scheduler.status(now))
            self._next_heartbeat = now + HEARTBEAT_S


def run(
    config: SchedulerConfig,
    inbox: Inbox[ToScheduler],
    to_worker: Outbox[Plan],
    to_tokenizer: Outbox[FromScheduler],
    stop: Callable[[], bool],
) -> None:
    """The scheduler process, until `stop()`."""
    loop = SchedulerLoop(config, inbox, to_worker, to_tokenizer)
    gc.freeze()  # modules stay: no collection between two steps needs to look at them
    while not stop():
        loop.turn(HEARTBEAT_S)
