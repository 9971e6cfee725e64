"""The Engine's runtime inside this process: tokenizer, scheduler and worker take turns in one thread.

The same code as in the processes, with local queues in place of sockets.
"""

import asyncio
import threading
import time
from collections import deque

from slipstream.config.resolve import Resolved
from slipstream.errors import SlipstreamError
from slipstream.launch.runtime import OnFailure, OnMessage
from slipstream.log import get_logger
from slipstream.messages.queues import LocalQueue
from slipstream.messages.to_scheduler import ToScheduler
from slipstream.messages.to_server import ToServer
from slipstream.messages.to_tokenizer import ToTokenizer
from slipstream.messages.to_worker import Plan
from slipstream.scheduler.process import HEARTBEAT_S, SchedulerLoop

logger = get_logger(__name__)

_POLL_S = 20e-6  # between two looks at a step; other threads share this process


class _LoopOutbox:
    """Delivers messages to a callback in an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_message: OnMessage) -> None:
        self._loop = loop
        self._on_message = on_message

    def put(self, message: ToServer) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._on_message, message)


class InProcessRuntime:
    """One background thread that does what the three processes do."""

    def __init__(
        self, resolved: Resolved, loop: asyncio.AbstractEventLoop, on_message: OnMessage, on_failure: OnFailure
    ) -> None:
        self._resolved = resolved
        self._loop = loop
        self._on_failure = on_failure
        self._to_server = _LoopOutbox(loop, on_message)
        self.to_tokenizer: LocalQueue[ToTokenizer] = LocalQueue()
        self._to_scheduler: LocalQueue[ToScheduler] = LocalQueue()
        self._to_worker: LocalQueue[Plan] = LocalQueue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._main, daemon=True, name="slipstream-runtime")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _main(self) -> None:
        try:
            self._run()
        except SlipstreamError as error:
            self._loop.call_soon_threadsafe(self._on_failure, str(error))
        except Exception as error:  # the border of what is a process elsewhere: report, then end
            logger.exception("unexpected error")
            self._loop.call_soon_threadsafe(self._on_failure, f"unexpected {type(error).__name__}: {error}")

    def _run(self) -> None:
        from slipstream.tokenizer.process import load_tokenizer, make_core
        from slipstream.worker.process import load_worker, send_finished  # torch: only where the worker runs here

        config = self._resolved.tokenizer
        tokenizer = make_core(config, load_tokenizer(config), self._to_scheduler, self._to_server, decoder=None)
        worker = load_worker(self._resolved.worker, self._to_server)
        scheduler = SchedulerLoop(self._resolved.scheduler, self._to_scheduler, self._to_worker, self.to_tokenizer)
        self._to_scheduler.put(worker.ready)
        plans: deque[Plan] = deque()
        while not self._stopped.is_set():
            if not plans and not worker.num_pending and not self._to_scheduler.wait(0.0):
                self.to_tokenizer.wait(HEARTBEAT_S)
            for message in self.to_tokenizer.drain():
                tokenizer.handle(message)
            scheduler.turn(0.0)
            plans.extend(self._to_worker.drain())
            if plans:
                worker.submit(plans.popleft())
            elif worker.num_pending:
                time.sleep(_POLL_S)
            send_finished(worker, self._to_scheduler)
