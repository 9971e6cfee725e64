"""What the person at the terminal sees while the server starts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from slipstream.messages import to_server


class Terminal(Console):
    """A Console that leaves a closed pipe to us: rich would end the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class StartupDisplay:
    """One line for each stage, with the seconds since the start, and a progress bar while something is counted.

    A terminal that goes away (a closed pipe, a full disk) silences the display; it never disturbs the server.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Terminal(highlight=False, soft_wrap=True)
        self._started_at = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_at

    def line(self, text: str) -> None:
        """Print one stage."""
        with self._tolerant():
            self._console.print(f"[{self.elapsed_s:6.2f} s] {text}", markup=False)

    def warning(self, text: str) -> None:
        """Print a warning that stands out."""
        with self._tolerant():
            self._console.print(f"[{self.elapsed_s:6.2f} s] warning: {text}", markup=False, style="bold red")

    def show(self, message: to_server.Stage | to_server.Progress) -> None:
        """Print a child's stage or move its progress bar."""
        match message:
            case to_server.Stage():
                self.line(f"{message.process}: {message.text}")
            case to_server.Progress():
                with self._tolerant():
                    self._move(message)

    def _move(self, message: to_server.Progress) -> None:
        text = f"{message.process}: {message.text}"
        if self._console.is_terminal:
            if self._bar is None:
                self._bar = Progress(
                    TextColumn("[progress.description]{task.description}"),
                    BarColumn(),
                    MofNCompleteColumn(),
                    console=self._console,
                    transient=True,
                )
                self._bar.start()
                self._task = self._bar.add_task(text, total=message.total)
            assert self._task is not None
            self._bar.update(self._task, completed=message.done, total=message.total)
        if message.done >= message.total:
            self.close()
            self.line(f"{text}: {message.done} of {message.total}")

    def close(self) -> None:
        """Remove an unfinished progress bar."""
        bar, self._bar = self._bar, None
        if bar is not None:
            with self._tolerant():
                bar.stop()

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._console.quiet = True
