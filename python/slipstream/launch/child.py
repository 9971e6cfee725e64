"""The main of every child process: `python -m slipstream.launch.child ROLE`.

The first line on stdin is the ChildSetup as JSON. After it stdin stays open and silent: when it closes, the parent is
gone or wants us to stop. So a child never outlives its parent, whatever killed the parent.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from slipstream.config.processes import Endpoints, SchedulerConfig, TokenizerConfig, WorkerConfig
from slipstream.errors import SlipstreamError
from slipstream.log import get_logger, setup_logging
from slipstream.messages.queues import ZmqInbox, ZmqOutbox
from slipstream.messages.to_scheduler import ToScheduler
from slipstream.messages.to_server import ProcessFailed, ToServer
from slipstream.messages.to_tokenizer import ToTokenizer
from slipstream.messages.to_worker import ToWorker

logger = get_logger(__name__)

EXIT_GRACE_S = 2.0  # how long a child may take to end by itself after its parent has closed stdin
PR_SET_PDEATHSIG = 1


ChildConfig = TokenizerConfig | SchedulerConfig | WorkerConfig


class ChildSetup(msgspec.Struct, frozen=True):
    """What a child gets from its parent: where everybody listens, and its own configuration."""

    endpoints: Endpoints
    config: ChildConfig


CONFIGS: dict[str, type[Any]] = {
    "tokenizer": TokenizerConfig,
    "scheduler": SchedulerConfig,
    "worker": WorkerConfig,
}


def decode_setup(role: str, line: bytes) -> tuple[Endpoints, Any]:
    """Read the first line of stdin."""
    raw = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    return msgspec.json.decode(raw["endpoints"], type=Endpoints), msgspec.json.decode(raw["config"], type=CONFIGS[role])


def main() -> None:
    role = sys.argv[1]
    # The parent decides when we end; a Ctrl-C or a SIGTERM for the whole group is its business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    endpoints, config = decode_setup(role, sys.stdin.buffer.readline())
    setup_logging(role, config.log_level)
    stopped = threading.Event()
    _end_with_parent(stopped)
    context = zmq.Context(1)
    to_server: ZmqOutbox[ToServer] = ZmqOutbox(context, endpoints.server, ToServer)
    code = 0
    try:
        _run(role, config, endpoints, context, to_server, stopped.is_set)
    except SlipstreamError as error:
        to_server.put(ProcessFailed(role, str(error)))
        code = 1
    except Exception as error:  # the one border of a process: report, then die
        logger.exception("unexpected error")
        to_server.put(ProcessFailed(role, f"unexpected {type(error).__name__}: {error}"))
        code = 1
    to_server.close()
    context.destroy(linger=500)
    sys.stderr.flush()
    os._exit(code)  # do not wait for other libraries' threads


def _run(
    role: str,
    config: Any,
    endpoints: Endpoints,
    context: "zmq.Context[Any]",
    to_server: ZmqOutbox[ToServer],
    stop: Callable[[], bool],
) -> None:
    to_tokenizer: ZmqOutbox[Any] = ZmqOutbox(context, endpoints.tokenizer, ToTokenizer)
    to_scheduler: ZmqOutbox[Any] = ZmqOutbox(context, endpoints.scheduler, ToScheduler)
    match role:
        case "tokenizer":
            from slipstream.tokenizer import process as tokenizer

            inbox: ZmqInbox[Any] = ZmqInbox(context, endpoints.tokenizer, ToTokenizer)
            tokenizer.run(config, inbox, to_scheduler, to_server, stop)
        case "scheduler":
            from slipstream.scheduler import process as scheduler

            to_worker: ZmqOutbox[Any] = ZmqOutbox(context, endpoints.worker, ToWorker)
            inbox = ZmqInbox(context, endpoints.scheduler, ToScheduler)
            scheduler.run(config, inbox, to_worker, to_tokenizer, stop)
        case "worker":
            from slipstream.worker import process as worker  # imports torch: in this process only

            inbox = ZmqInbox(context, endpoints.worker, ToWorker)
            worker.run(config, inbox, to_scheduler, to_server, stop)


def _end_with_parent(stopped: threading.Event) -> None:
    """Set `stopped` when stdin closes, and end by force if that does not help."""
    if sys.platform == "linux":  # covers a child that is stuck in native code while its parent is killed
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        sys.stdin.buffer.read()
        stopped.set()
        threading.Timer(EXIT_GRACE_S, os._exit, (0,)).start()

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


if __name__ == "__main__":
    main()
