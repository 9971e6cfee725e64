"""The child processes of one run: started together, watched, stopped together."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from slipstream.config.resolve import Resolved
from slipstream.launch.child import ChildConfig, ChildSetup
from slipstream.launch.endpoints import make_endpoints, remove_endpoints
from slipstream.log import get_logger
from slipstream.messages.codec import Codec
from slipstream.messages.queues import MAX_FRAME_BYTES, ZmqOutbox
from slipstream.messages.to_server import ProcessFailed, ToServer
from slipstream.messages.to_tokenizer import FromServer, ToTokenizer

logger = get_logger(__name__)

STOP_TIMEOUT_S = 3.0
_MOST_AT_ONCE = 64  # messages that are handed on before anybody else gets a turn


class Cluster:
    """Tokenizer, scheduler and worker processes, and the sockets to them. Lives in one event loop.

    `on_message` gets everything that the children send to the server, in the event loop.
    """

    def __init__(self, resolved: Resolved, on_message: Callable[[ToServer], None]) -> None:
        self._configs: dict[str, ChildConfig] = {
            "tokenizer": resolved.tokenizer,
            "scheduler": resolved.scheduler,
            "worker": resolved.worker,
        }
        self._on_message = on_message
        self._endpoints = make_endpoints()
        self._context: zmq.asyncio.Context = zmq.asyncio.Context()
        self._inbox = self._context.socket(zmq.PULL)
        self._inbox.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._inbox.setsockopt(zmq.LINGER, 0)
        self._inbox.bind(self._endpoints.server)
        plain: zmq.Context[Any] = zmq.Context.shadow(self._context)
        self.to_tokenizer: ZmqOutbox[FromServer] = ZmqOutbox(plain, self._endpoints.tokenizer, ToTokenizer)
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._failure: str | None = None  # a child's own last words
        self._pump: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start all children; they report by messages."""
        self._pump = asyncio.create_task(self._receive())
        for role, config in self._configs.items():
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "slipstream.launch.child",
                role,
                stdin=asyncio.subprocess.PIPE,
                start_new_session=True,
                env=_child_environment(role),
            )
            self._children[role] = child
            assert child.stdin is not None
            child.stdin.write(msgspec.json.encode(ChildSetup(self._endpoints, config)) + b"\n")
            with contextlib.suppress(ConnectionError):  # it has died already: wait_for_failure() will say so
                await child.stdin.drain()

    async def wait_for_failure(self) -> str:
        """Returns when a child has ended or its messages cannot be read, with one sentence that says which and why."""
        assert self._pump is not None
        waits = {asyncio.create_task(child.wait()): role for role, child in self._children.items()}
        try:
            done, _ = await asyncio.wait({*waits, self._pump}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        if self._pump.done():
            error = self._pump.exception()
            logger.error("a message of a child process could not be handled", exc_info=error)
            return f"a message of a child process could not be handled: {type(error).__name__}: {error}"
        await asyncio.sleep(0.05)  # its last message may still be on the way
        if self._failure is not None:
            return self._failure
        role, code = next((role, task.result()) for task, role in waits.items() if task in done)
        return f"the {role} process ended {_exit_text(code)}"

    async def stop(self) -> None:
        """End all children: first by closing their stdin, then by force. Removes the sockets."""
        for child in self._children.values():
            if child.stdin is not None:
                child.stdin.close()
        waits = [asyncio.create_task(child.wait()) for child in self._children.values()]
        if waits:
            _, pending = await asyncio.wait(waits, timeout=STOP_TIMEOUT_S)
            if pending:
                for child in self._children.values():
                    if child.returncode is None:
                        child.kill()
                await asyncio.wait(pending)
        if self._pump is not None:
            self._pump.cancel()
        self.to_tokenizer.close()
        self._inbox.close()
        self._context.destroy(linger=0)
        remove_endpoints(self._endpoints)

    async def _receive(self) -> None:
        codec: Codec[ToServer] = Codec(ToServer)
        while True:
            frames = [await self._inbox.recv()]
            # All that wait are handed on together: a reader that has fallen behind then catches up in one turn.
            with contextlib.suppress(zmq.Again):
                while len(frames) < _MOST_AT_ONCE:
                    frames.append(await self._inbox.recv(zmq.NOBLOCK))
            for frame in frames:
                message = codec.decode(frame)
                if isinstance(message, ProcessFailed) and self._failure is None:
                    self._failure = message.message
                self._on_message(message)
            await asyncio.sleep(0)  # recv() does not yield while messages are there, and their readers must run too


def _child_environment(role: str) -> dict[str, str]:
    environment = dict(os.environ)
    environment["PYTHONUNBUFFERED"] = "1"
    if role != "worker":
        environment["OMP_NUM_THREADS"] = "1"  # only the worker computes
    return environment


def _exit_text(code: int) -> str:
    return f"by signal {-code}" if code < 0 else f"with exit code {code}"
