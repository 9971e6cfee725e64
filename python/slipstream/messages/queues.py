"""Typed one-way queues: the ZMQ form between processes and the local form inside one.

A receiver binds its inbox and anybody connects to it. Order is kept between each pair of sender and receiver.
"""

import threading
from collections import deque
from typing import Any, Generic, Protocol, TypeVar

import zmq

from slipstream.errors import WorkerDied
from slipstream.messages.codec import Codec

T = TypeVar("T")
Sent = TypeVar("Sent", contravariant=True)

MAX_QUEUED_FRAMES = 100_000  # far above what admission lets in; reaching it means that the receiver hangs
MAX_FRAME_BYTES = 256 * 2**20


class Outbox(Protocol[Sent]):
    """Where one process puts messages for another."""

    def put(self, message: Sent) -> None: ...


class Inbox(Protocol[T]):
    """Where a process finds its messages."""

    def drain(self) -> list[T]:
        """Everything that has arrived, in order; never waits."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Wait until something is there, at most `timeout_s`; says whether something is."""
        ...


class ZmqOutbox(Generic[T]):
    """Sends to the inbox bound at `endpoint`; raises WorkerDied when the receiver has stopped reading."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, kind: Any) -> None:
        self._codec: Codec[T] = Codec(kind)
        self._socket = context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, MAX_QUEUED_FRAMES)
        self._socket.setsockopt(zmq.LINGER, 500)  # a last word before exit, but never a hang
        self._endpoint = endpoint
        self._socket.connect(endpoint)

    def put(self, message: T) -> None:
        try:
            self._socket.send(self._codec.encode(message), flags=zmq.NOBLOCK, copy=False)
        except zmq.Again:
            raise WorkerDied(f"{self._endpoint} has {MAX_QUEUED_FRAMES} unread messages") from None

    def close(self) -> None:
        self._socket.close()


class ZmqInbox(Generic[T]):
    """The inbox bound at `endpoint`."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, kind: Any) -> None:
        self._codec: Codec[T] = Codec(kind)
        self.socket = context.socket(zmq.PULL)
        self.socket.setsockopt(zmq.RCVHWM, MAX_QUEUED_FRAMES)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(endpoint)

    def drain(self) -> list[T]:
        messages: list[T] = []
        while True:
            try:
                messages.append(self._codec.decode(self.socket.recv(flags=zmq.NOBLOCK)))
            except zmq.Again:
                return messages

    def wait(self, timeout_s: float) -> bool:
        return bool(self.socket.poll(int(timeout_s * 1000), zmq.POLLIN))

    def close(self) -> None:
        self.socket.close()


class LocalQueue(Generic[T]):
    """Both ends in one process; safe between threads."""

    def __init__(self) -> None:
        self._messages: deque[T] = deque()
        self._arrived = threading.Condition()

    def put(self, message: T) -> None:
        with self._arrived:
            self._messages.append(message)
            self._arrived.notify_all()

    def drain(self) -> list[T]:
        with self._arrived:
            messages = list(self._messages)
            self._messages.clear()
            return messages

    def wait(self, timeout_s: float) -> bool:
        with self._arrived:
            return self._arrived.wait_for(lambda: bool(self._messages), timeout_s)
