"""`slipstream bench one-batch | serving | speculative`: parse the flags, measure, print a table, write JSON."""

import argparse
import asyncio
import dataclasses
import functools
import os
import random
from collections.abc import Callable

from rich.console import Console

from slipstream.bench import one_batch
from slipstream.bench.connection import API_KEY_VARIABLE
from slipstream.bench.http_client import LoadClient
from slipstream.bench.own_server import OwnServer
from slipstream.bench.rows import OneBatchRow, ServingRow
from slipstream.bench.serving import Case, Send, run_case, to_row
from slipstream.bench.tables import one_batch_table, serving_table
from slipstream.bench.workload import ordinary_token_ids, poisson_arrivals, random_prompts, read_questions
from slipstream.cli.bench_common import (
    ENGINE,
    MAX_WARM_UP_REQUESTS,
    add_common_flags,
    add_load_flags,
    positive,
    progress,
    show_failures,
    warm_up,
    whole_number,
    write_rows,
)
from slipstream.cli.bench_speculative import bench_speculative
from slipstream.config.flags import AUTO, FlagParser, flag_name, from_namespace
from slipstream.config.options import LaunchOptions
from slipstream.config.resolve import Resolved
from slipstream.engine import Engine
from slipstream.errors import ConfigError
from slipstream.launch.prepare import prepare
from slipstream.tokenizer.process import load_tokenizer

DTYPE_BYTES = {"float32": 4}  # all others: 2


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


# ---- one-batch


def one_batch_parser() -> FlagParser:
    """Every server flag, and the shapes."""
    parser = FlagParser(
        prog="slipstream bench one-batch",
        description="Time batches of random prompts through the Engine, with the processes and sockets of a server.",
    )
    _add_shape_flags(parser, batch_sizes=[1, 8])
    parser.add_argument("--runs", type=whole_number, default=3, metavar="N", help="timed runs of each batch size")
    parser.add_argument("--in-process", action="store_true", help="all in one process, without sockets, to compare")
    parser.add_argument(
        "--memory-bandwidth-gbs", type=positive, metavar="X",
        help="memory bandwidth in GB/s: shows the time that reading the weights takes at least",
    )  # fmt: skip
    add_common_flags(parser, server=False)
    return parser


def bench_one_batch(args: list[str]) -> int:
    """Load the model once, then measure every batch size."""
    flags = one_batch_parser().parse_args(args)
    shapes = [one_batch.Shape(size, flags.input_len, flags.output_len) for size in flags.batch_size]
    options = _room_for(from_namespace(LaunchOptions, flags), max(flags.batch_size))
    prepared = prepare(options)
    spec, resolved = prepared.spec, prepared.resolved
    one_batch.check_shapes(
        shapes,
        context_length=resolved.scheduler.context_length,
        max_running_requests=resolved.scheduler.max_running_requests,
    )
    token_ids = ordinary_token_ids(load_tokenizer(resolved.tokenizer))
    rng = random.Random(flags.seed)
    floor_ms = None
    if flags.memory_bandwidth_gbs is not None:
        weight_bytes = one_batch.decode_weight_bytes(spec.config, DTYPE_BYTES.get(resolved.worker.dtype, 2))
        floor_ms = weight_bytes / (flags.memory_bandwidth_gbs * 1e6)
    timings = []
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    with Engine(in_process=flags.in_process, **values) as engine, progress() as track:
        for shape in shapes:
            on_run = track(f"batch {shape.batch_size}", 2 * flags.runs + 1)
            timings.append(one_batch.measure(
                engine, shape, token_ids=token_ids, num_runs=flags.runs, rng=rng, on_run=on_run))  # fmt: skip
    rows = [_one_batch_row(timing, resolved, flags.in_process, floor_ms) for timing in timings]
    Console().print(one_batch_table(rows))
    write_rows(flags.output_json, rows)
    return 0


def _one_batch_row(
    timing: one_batch.Timing, resolved: Resolved, in_process: bool, floor_ms: float | None
) -> OneBatchRow:
    shape, tpot_s, median_s = timing.shape, timing.tpot_s, timing.tpot_median_s
    return OneBatchRow(
        engine=ENGINE, model=resolved.server.served_model_name, batch_size=shape.batch_size, input_len=shape.input_len,
        output_len=shape.output_len, ttft_s=timing.ttft_s, tpot_ms=None if tpot_s is None else 1000 * tpot_s,
        decode_tok_s=None if tpot_s is None else shape.batch_size / tpot_s,
        speculative=resolved.scheduler.drafts is not None, acceptance_length=timing.drafts.acceptance_length,
        in_process=in_process, dtype=resolved.worker.dtype, device=resolved.worker.device,
        ttft_median_s=timing.ttft_median_s, tpot_median_ms=None if median_s is None else 1000 * median_s,
        prefill_tok_s=shape.batch_size * shape.input_len / timing.ttft_s, floor_ms=floor_ms,
        one_token_runs_s=list(timing.one_token_s), all_tokens_runs_s=list(timing.all_tokens_s),
    )  # fmt: skip


def _room_for(options: LaunchOptions, batch_size: int) -> LaunchOptions:
    """The whole batch runs at once, unless the user has set another limit."""
    if options.max_running_requests != AUTO:
        return options
    at_least = max(batch_size, prepare(options).resolved.scheduler.max_running_requests)
    return dataclasses.replace(options, max_running_requests=at_least)


# ---- serving


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
    _add_shape_flags(parser, batch_sizes=None)
    add_common_flags(parser, server=True)
    parser.set_defaults(port=0)  # any free one
    return parser


def bench_serving(args: list[str]) -> int:
    """Measure one case after the other."""
    parser = serving_parser()
    flags = parser.parse_args(args)
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
    write_rows(flags.output_json, rows)
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
            rows.append(to_row(
                case, records, duration_s, engine=ENGINE, model=model,
                input_len=None if questions is not None else flags.input_len,
                output_len=None if questions is not None else flags.output_len))  # fmt: skip
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


def _add_shape_flags(parser: FlagParser, batch_sizes: list[int] | None) -> None:
    if batch_sizes is not None:
        parser.add_argument(
            "--batch-size", type=whole_number, nargs="+", default=batch_sizes, metavar="N", help="prompts at once"
        )
    parser.add_argument("--input-len", type=whole_number, default=128, metavar="N", help="tokens of each prompt")
    parser.add_argument(
        "--output-len", type=whole_number, default=128, metavar="N",
        help="tokens of each answer, or with a file of questions the most",
    )  # fmt: skip
