"""Reads files into tensors on a device, so that the disk, the host and the copy to the device work at the same time.

A few threads read pieces of the files into a ring of pinned buffers; every buffer is copied from on a stream of its
own while others are read into. Host memory is bounded by the ring, whatever the tensors' sizes.
"""

import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor

from slipstream.errors import CheckpointError

NUM_THREADS = 8  # copying out of the page cache, one reaches 3 to 8 GB/s; disks want several requests at a time
PIECE_BYTES = 16 * 2**20
AHEAD_BYTES = 512 * 2**20  # of tensors that are begun but not done: bounds what their conversion takes on the device


@dataclass(frozen=True)
class Stretch:
    """Bytes of a file, from `start` on, that fill `target`, uint8 [n] on the device."""

    start: int
    target: Tensor


class Load(Protocol):
    """One tensor of a file."""

    @property
    def file(self) -> str: ...
    @property
    def num_bytes(self) -> int: ...

    def begin(self) -> list[Stretch]:
        """What to read. Called once, shortly before it is read."""
        ...

    def end(self) -> None:
        """Everything is there for what is put on the stream from now on. Raises ValueError for bad values."""
        ...


@dataclass(frozen=True)
class _InFlight:
    load: Load
    pieces: list[Future[None]]


def stream_in(
    folder: str,
    loads: Sequence[Load],
    device: torch.device,
    *,
    num_threads: int = NUM_THREADS,
    piece_bytes: int = PIECE_BYTES,
    ahead_bytes: int = AHEAD_BYTES,
) -> Generator[Load, None, None]:
    """Yield each load when it is done, in order. begin() and end() run in the calling thread, on the stream of copies
    where there is one; once the iterator is exhausted everything is on the device.

    Raises CheckpointError for a file that cannot be opened or read, or ends too early, and for bad values. All threads
    are done before an error leaves the iterator.
    """
    piece_bytes = max(1, min(piece_bytes, max((load.num_bytes for load in loads), default=0)))
    lane = _Lane(device, 2 * num_threads, piece_bytes)
    window: deque[_InFlight] = deque()
    num_ahead = 0
    with ExitStack() as stack:
        files = _OpenFiles(Path(folder), stack)
        stack.callback(lane.finish)
        executor = ThreadPoolExecutor(num_threads, thread_name_prefix="weights")
        stack.callback(executor.shutdown, cancel_futures=True)
        for load in loads:
            while window and num_ahead + load.num_bytes > ahead_bytes:
                num_ahead -= window[0].load.num_bytes
                yield _complete(folder, window.popleft(), lane)
            with reading(folder, load.file):
                file = files[load.file]
            with lane.stream():
                stretches = load.begin()
            pieces = [
                executor.submit(_move, lane, file, stretch.start + begin, stretch.target[begin : begin + piece_bytes])
                for stretch in stretches
                for begin in range(0, len(stretch.target), piece_bytes)
            ]
            window.append(_InFlight(load, pieces))
            num_ahead += load.num_bytes
        while window:
            yield _complete(folder, window.popleft(), lane)


@contextmanager
def reading(folder: str, file: str) -> Iterator[None]:
    """What goes wrong while a file is read becomes a CheckpointError that names it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(folder, [f"{file} cannot be read: {error}"]) from error
    except ValueError as error:
        raise CheckpointError(folder, [f"{file}: {error}"]) from error


def _complete(folder: str, flight: _InFlight, lane: "_Lane") -> Load:
    with reading(folder, flight.load.file):
        for piece in flight.pieces:
            piece.result()
        with lane.stream():
            flight.load.end()
    return flight.load


def _move(lane: "_Lane", file: int, start: int, target: Tensor) -> None:
    """One piece: file -> buffer -> device. Returns once the copy has been put on the stream."""
    buffer = lane.free.get()
    try:
        buffer.wait()
        _read_exactly(file, start, buffer.view[: len(target)])
        buffer.copy_to(target, lane)
    finally:
        lane.free.put(buffer)


def _read_exactly(file: int, start: int, view: memoryview) -> None:
    if hasattr(os, "posix_fadvise"):  # the disk gets one large request, where reading ahead would make small ones
        os.posix_fadvise(file, start, len(view), os.POSIX_FADV_WILLNEED)
    done = 0
    while done < len(view):
        count = os.preadv(file, [view[done:]], start + done)
        if count == 0:
            raise OSError(f"it ends at byte {start + done}, in the middle of a tensor")
        done += count


class _OpenFiles:
    """Descriptors by name, opened when they are first asked for."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._opened: dict[str, int] = {}

    def __getitem__(self, name: str) -> int:
        if name not in self._opened:
            self._opened[name] = os.open(self._folder / name, os.O_RDONLY)
            self._stack.callback(os.close, self._opened[name])
        return self._opened[name]


class _Lane:
    """The way to one device: buffers that are taken in turn, and the stream of copies out of them.

    To a CPU it leads through plain memory and without a stream: for tests.
    """

    def __init__(self, device: torch.device, num_buffers: int, num_bytes: int) -> None:
        self.copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self.copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self.copies.wait_stream(torch.cuda.current_stream(device))
        self.free: SimpleQueue[_Buffer] = SimpleQueue()
        for _ in range(num_buffers):
            self.free.put(_Buffer(num_bytes, is_pinned=self.copies is not None))

    def stream(self) -> AbstractContextManager[object]:
        """Kernels that are launched inside it come after the copies so far."""
        return nullcontext() if self.copies is None else torch.cuda.stream(self.copies)

    def finish(self) -> None:
        """Wait for the copies. Memory that only their stream could use again goes back to the device."""
        if self.copies is not None:
            self.copies.synchronize()
            torch.cuda.empty_cache()


class _Buffer:
    """Host memory, and the end of the copy out of it that may still run."""

    def __init__(self, num_bytes: int, *, is_pinned: bool) -> None:
        self._tensor = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=is_pinned)
        self._copied = torch.cuda.Event(blocking=True) if is_pinned else None  # type: ignore[no-untyped-call]
        self.view = self._tensor.numpy().data

    def wait(self) -> None:
        if self._copied is not None:
            self._copied.synchronize()

    def copy_to(self, target: Tensor, lane: _Lane) -> None:
        # In inference mode, which each thread has to itself, so that `target` may be a tensor that was made in it.
        with torch.inference_mode(), lane.stream():
            target.copy_(self._tensor[: len(target)], non_blocking=True)
            if self._copied is not None:
                self._copied.record(lane.copies)
