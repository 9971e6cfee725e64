"""What the benchmarks of `slipstream bench` have in common: flags, progress, output."""

import argparse
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from slipstream import __version__
from slipstream.bench.http_client import LoadClient
from slipstream.bench.rows import Row, append_row
from slipstream.bench.serving import Case, Send, run_case
from slipstream.config.flags import FlagParser, add_flags
from slipstream.config.options import LaunchOptions
from slipstream.errors import ConfigError

ENGINE = f"slipstream {__version__}"
MAX_REQUESTS = 100_000
MAX_WARM_UP_REQUESTS = 8


def whole_number(text: str, maximum: int = 2**31 - 1) -> int:
    """A flag's value that must be a positive whole number."""
    value = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= value <= maximum:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {maximum}")
    return value


def positive(text: str) -> float:
    """A flag's value that must be a positive finite number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def add_common_flags(parser: FlagParser, *, server: bool) -> None:
    """The seed, the output, and every flag of a server or of an engine."""
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random here")
    parser.add_argument(
        "--output-json", metavar="FILE",
        help="append the figures, one JSON object a line, of each case as soon as it is measured",
    )  # fmt: skip
    group = parser.add_argument_group("server flags" if server else "engine flags")
    add_flags(group, LaunchOptions, server=server)
    parser.set_defaults(log_level="warning")  # no line for each request


def add_load_flags(parser: FlagParser, *, num_requests: int, concurrency: str, questions: str, unit: str) -> None:
    """The requests that go to a server; `num_requests` is a default, the texts are help, `unit` is what is timed."""
    parser.add_argument(
        "--num-requests", type=functools.partial(whole_number, maximum=MAX_REQUESTS), default=num_requests, metavar="N",
        help="requests of each case",
    )  # fmt: skip
    parser.add_argument("--concurrency", type=whole_number, nargs="+", metavar="N", help=concurrency)
    parser.add_argument("--questions", metavar="FILE", help=questions)
    parser.add_argument("--timeout-s", type=positive, default=600.0, metavar="X", help=f"longest time for one {unit}")


def add_shape_flags(parser: FlagParser, batch_sizes: list[int] | None) -> None:
    """Of random prompts; without `batch_sizes`, their default, another flag says how many there are at once."""
    if batch_sizes is not None:
        parser.add_argument(
            "--batch-size", type=whole_number, nargs="+", default=batch_sizes, metavar="N", help="prompts at once"
        )
    parser.add_argument("--input-len", type=whole_number, default=128, metavar="N", help="tokens of each prompt")
    parser.add_argument(
        "--output-len", type=whole_number, default=128, metavar="N",
        help="tokens of each answer, or with a file of questions the most",
    )  # fmt: skip


@contextmanager
def progress() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """Gives a function (text, total) -> a function to call at each step. Shown on a terminal only."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:

        def track(text: str, total: int) -> Callable[[], None]:
            task = bar.add_task(text, total=total)
            return lambda: bar.advance(task)

        yield track


async def warm_up(client: LoadClient, case: Case, sends: list[Send]) -> None:
    """A few requests that are not measured, then an empty prefix cache."""
    records, _ = await run_case(Case(case.concurrency, None, case.timeout_s), sends, None)
    if not any(record.ok for record in records):
        raise ConfigError(f"every warm-up request failed; the first: {records[0].error}")
    if problem := await client.flush_cache():
        Console(stderr=True).print(f"note: the prefix cache was not flushed ({problem})", markup=False)


def show_failures(failures: Mapping[str, int]) -> None:
    """What went wrong, and how often."""
    for failure, count in failures.items():
        Console().print(f"{count} failed: {failure}", style="red", markup=False, highlight=False)


def keep_row(path: str | None, row: Row) -> None:
    """Write the figures, if that was asked for."""
    if path is not None:
        append_row(path, row)


def check_output(path: str | None) -> None:
    """Raise ConfigError where figures could not be written, before anything is measured."""
    if path is None:
        return
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise ConfigError(f"--output-json {path} cannot be written: {error.strerror}") from None
