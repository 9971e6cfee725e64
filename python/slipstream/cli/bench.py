"""`slipstream bench one-batch | serving | speculative`: parse the flags, measure, print a table, write JSON."""

import argparse
import asyncio
import dataclasses
import functools
import os
import random
from collections.abc import Callable

from rich.console import Console

from slipstream.bench.connection import API_KEY_VARIABLE
from slipstream.bench.http_client import LoadClient
from slipstream.bench.own_server import OwnServer
from slipstream.bench.rows import ServingRow
from slipstream.bench.serving import Case, Send, run_case, to_row
from slipstream.bench.tables import serving_table
from slipstream.bench.workload import poisson_arrivals, random_prompts, read_questions
from slipstream.cli.bench_common import (
    ENGINE,
    MAX_WARM_UP_REQUESTS,
    add_common_flags,
    add_load_flags,
    add_shape_flags,
    check_output,
    keep_row,
    positive,
    progress,
    show_failures,
    warm_up,
)
from slipstream.cli.bench_one_batch import bench_one_batch
from slipstream.cli.bench_speculative import bench_speculative
from slipstream.config.flags import FlagParser, flag_name, from_namespace
from slipstream.config.options import LaunchOptions
from slipstream.errors import ConfigError


def main(args: list[str]) -> int:
    """Returns 0 when something was measured and 1 when every request failed."""
    commands: dict[str, Callable[[list[str]], int]] = {
        "one-batch": bench_one_batch, "serving": bench_serving, "speculative": bench_speculative,
    }  # fmt: skip
    if args and args[0] in commands:
        return commands[args[0]](args[1:])
    parser = FlagParser(prog="slipstream bench", description="Measure the speed of a model or of a server.")
    parser.add_argument(
        "benchmark", choices=list(commands),
        help="one-batch: the Engine, one batch at a time; serving: a server under load; speculative: servers with and "
        "without drafts, side by side; each has its own --help",
    )  # fmt: skip
    parser.parse_args(args[:1] or ["--help"])
    return 2


def serving_parser() -> FlagParser:
    """The load, and every server flag for a server of our own."""
    parser = FlagParser(
        prog="slipstream bench serving",
        description="Load a running server, or one that is started with the server flags given and stopped at the end.",
    )
    parser.add_argument("--base-url", metavar="URL", help="the running server; none: start one")
    parser.add_argument(
        "--request-rate",
        type=positive,
        metavar="X",
        help="arrivals per second on average (Poisson), whatever the answers",
    )
    add_load_flags(
        parser, num_requests=64, unit="case", questions="chat questions, one a line, instead of random prompts",
        concurrency="requests at once, one case for each; default 1 8, with --request-rate no limit",
    )  # fmt: skip
    add_shape_flags(parser, batch_sizes=None)
    add_common_flags(parser, server=True)
    parser.set_defaults(port=0)  # any free one
    return parser


def bench_serving(args: list[str]) -> int:
    """Measure one case after the other."""
    parser = serving_parser()
    flags = parser.parse_args(args)
    check_output(flags.output_json)
    options = from_namespace(LaunchOptions, flags)
    if flags.base_url is None:
        if options.api_key is None and API_KEY_VARIABLE in os.environ:
            options = dataclasses.replace(options, api_key=os.environ[API_KEY_VARIABLE])
        with OwnServer(options) as server:
            rows = asyncio.run(_measure_serving(server.url, options.api_key, flags))
    else:
        for name in sorted({field.name for field in dataclasses.fields(options)} - {"api_key"}):
            if getattr(options, name) != parser.get_default(name):
                raise ConfigError(
                    f"{flag_name(name)} is for a server that the benchmark starts; --base-url names another"
                )
        api_key = options.api_key or os.environ.get(API_KEY_VARIABLE)
        rows = asyncio.run(_measure_serving(flags.base_url, api_key, flags))
    for row in rows:
        Console().print(serving_table(row))
        show_failures(row.failures)
    return 0 if any(row.num_failed < row.num_requests for row in rows) else 1


async def _measure_serving(url: str, api_key: str | None, flags: argparse.Namespace) -> list[ServingRow]:
    questions = read_questions(flags.questions) if flags.questions is not None else None
    limits = flags.concurrency or ([None] if flags.request_rate is not None else [1, 8])
    rows = []
    async with LoadClient(url, api_key) as client:
        model = await client.model_name()
        token_ids = [] if questions is not None else await client.ordinary_token_ids()
        for index, concurrency in enumerate(limits):
            case = Case(concurrency, flags.request_rate, flags.timeout_s)
            rng = random.Random(f"{flags.seed}/{index}")
            await warm_up(client, case, _sends(client, flags, questions, token_ids, rng, MAX_WARM_UP_REQUESTS))
            sends = _sends(client, flags, questions, token_ids, rng, flags.num_requests)
            arrivals = poisson_arrivals(rng, len(sends), flags.request_rate) if flags.request_rate is not None else None
            with progress() as track:
                on_end = track(f"{concurrency or 'any number'} at once", len(sends))
                records, duration_s = await run_case(case, sends, arrivals, on_end)
            row = to_row(
                case, records, duration_s, engine=ENGINE, model=model,
                input_len=None if questions is not None else flags.input_len,
                output_len=None if questions is not None else flags.output_len,
            )  # fmt: skip
            keep_row(flags.output_json, row)
            rows.append(row)
    return rows


def _sends(
    client: LoadClient, flags: argparse.Namespace, questions: list[str] | None, token_ids: list[int],
    rng: random.Random, num_requests: int,
) -> list[Send]:  # fmt: skip
    """The requests of one case, ready to be sent: random prompts, or the questions in turn."""
    if questions is not None:
        texts = [questions[index % len(questions)] for index in range(num_requests)]
        return [functools.partial(client.ask, text, flags.output_len) for text in texts]
    prompts = random_prompts(rng, token_ids, num_requests, flags.input_len)
    return [functools.partial(client.generate, prompt, flags.output_len) for prompt in prompts]
