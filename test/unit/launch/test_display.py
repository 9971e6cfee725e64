"""What the terminal shows while a server starts."""

import io

import pytest
from rich.console import Console

from slipstream.launch.display import StartupDisplay, Terminal
from slipstream.messages.to_server import Progress, Stage


def shown(*messages: Stage | Progress, terminal: bool = False) -> str:
    out = io.StringIO()
    display = StartupDisplay(Console(file=out, force_terminal=terminal, width=100, highlight=False))
    for message in messages:
        display.show(message)
    display.close()
    return out.getvalue()


def test_one_line_for_each_stage() -> None:
    text = shown(Stage("worker", "loading [model]"), Stage("tokenizer", "ready"))
    assert len(text.splitlines()) == 2
    assert "worker: loading [model]" in text, "brackets are not markup"


def test_counting_prints_one_line_at_the_end_when_nobody_watches() -> None:
    text = shown(*(Progress("worker", "loading tensors", done, 3) for done in (1, 2, 3)))
    assert len(text.splitlines()) == 1 and "3 of 3" in text


def test_counting_draws_a_bar_on_a_terminal() -> None:
    text = shown(*(Progress("worker", "loading tensors", done, 3) for done in (1, 2, 3)), terminal=True)
    assert "━" in text and "3 of 3" in text


def test_an_unfinished_bar_is_removed() -> None:
    assert "1/3" in shown(Progress("worker", "loading tensors", 1, 3), terminal=True)


class ClosedPipe(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_that_went_away_disturbs_nobody(terminal: bool) -> None:
    console = Terminal(file=ClosedPipe(), force_terminal=terminal, width=100)
    display = StartupDisplay(console)
    for message in (Stage("worker", "a"), Progress("worker", "b", 1, 2), Progress("worker", "b", 2, 2)):
        display.show(message)
    display.line("end")
    display.close()
    assert console.quiet
