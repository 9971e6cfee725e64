"""`slipstream bench speculative`: what drafts bring, for each K and topk, against a server without drafts."""

import argparse
import asyncio
import dataclasses
import functools
import itertools
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from slipstream.bench import library_text, speculative
from slipstream.bench.connection import API_KEY_VARIABLE
from slipstream.bench.http_client import LoadClient
from slipstream.bench.own_server import OwnServer
from slipstream.bench.rows import SpeculativeRow
from slipstream.bench.serving import Case, Send
from slipstream.bench.speculative import DraftCase, ResolvedCase, Side
from slipstream.bench.tables import describe_drafts, speculative_tables
from slipstream.bench.workload import read_questions
from slipstream.cli.bench_common import (
    ENGINE,
    MAX_WARM_UP_REQUESTS,
    add_common_flags,
    add_load_flags,
    check_output,
    keep_row,
    progress,
    show_failures,
    warm_up,
    whole_number,
)
from slipstream.config.drafting import MAX_DRAFTS
from slipstream.config.flags import FlagParser, from_namespace
from slipstream.config.options import LaunchOptions
from slipstream.errors import ConfigError
from slipstream.launch.prepare import prepare

QUESTIONS, SOURCE = "questions", "source"
PROMPT_TOKENS = (64, 512)  # of source to continue


def speculative_parser() -> FlagParser:
    """The cases, the load, and every server flag that does not belong to a case."""
    parser = FlagParser(
        prog="slipstream bench speculative",
        description="Compare servers that draft with one that does not. All are started here, with the server flags "
        "given; two run at a time and get the same requests in turns.",
    )
    numbers = functools.partial(whole_number, maximum=MAX_DRAFTS)
    parser.add_argument("--num-steps", type=numbers, nargs="+", default=[1, 3, 5], metavar="N", help="each K to try")
    parser.add_argument("--topk", type=numbers, nargs="+", default=[1], metavar="N", help="each topk to try")
    parser.add_argument(
        "--workloads", nargs="+", choices=(QUESTIONS, SOURCE), default=[QUESTIONS, SOURCE],
        help="questions about functions of Python's standard library, and its source to continue",
    )  # fmt: skip
    add_load_flags(
        parser, num_requests=100, unit="turn", questions="chat questions, one a line, instead of those",
        concurrency="requests at once",
    )  # fmt: skip
    parser.set_defaults(concurrency=[1])
    parser.add_argument(
        "--output-len", type=whole_number, default=64, metavar="N", help="tokens of each answer; of a chat the most"
    )
    add_common_flags(parser, server=True)
    parser.set_defaults(port=0)  # any free one
    return parser


def bench_speculative(args: list[str]) -> int:
    """Measure one case after the other; the server without drafts runs all the time."""
    flags = speculative_parser().parse_args(args)
    if flags.questions is not None and QUESTIONS not in flags.workloads:
        raise ConfigError("--questions is a file for --workloads questions, which is not asked for")
    options = from_namespace(LaunchOptions, flags)
    if options.api_key is None and API_KEY_VARIABLE in os.environ:
        options = dataclasses.replace(options, api_key=os.environ[API_KEY_VARIABLE])
    if options.port:
        raise ConfigError("--port is one port, but two servers run at a time; leave it out, each takes a free one")
    speculative.check_options(options)
    check_output(flags.output_json)
    cases = [(case, resolve_case(case, options)) for case in speculative.cases(flags.num_steps, flags.topk)]
    rows: list[SpeculativeRow] = []
    _announce("without drafts")
    with OwnServer(speculative.plain_options(options)) as plain:
        workloads = asyncio.run(_workloads(plain.url, options.api_key, flags))
        for case, how in cases:
            _announce(f"with drafts, {describe_drafts(how.shape.depth, how.shape.topk, how.adaptive)}")
            with OwnServer(case.options(options)) as drafting:
                rows += asyncio.run(_measure(plain.url, drafting.url, options.api_key, how, workloads, flags))
    for table in speculative_tables(rows):
        Console().print(table)
    for row in rows:
        show_failures(row.failures)
        show_failures(row.plain_failures)
    return 0 if any(row.num_failed < row.num_requests for row in rows) else 1


def _announce(server: str) -> None:
    """Say on stderr whose lines of starting come next."""
    print(f"starting the server {server}:", file=sys.stderr, flush=True)


def resolve_case(case: DraftCase, options: LaunchOptions) -> ResolvedCase:
    """What the server of a case will do. Raises ConfigError for a case that cannot be, before anything is loaded."""
    resolved = prepare(case.options(options)).resolved
    drafts = resolved.scheduler.drafts
    if drafts is None:
        raise ConfigError(
            "the model has no draft; give --speculative-draft-model-path or --speculative-algorithm NGRAM"
        )
    return ResolvedCase(drafts.shape, drafts.adaptive, resolved.worker.dtype)


@dataclass(frozen=True)
class Workload:
    """Prompts: questions for the chat route, or token ids to continue."""

    name: str
    prompts: list[str] | list[list[int]]

    def sends(self, client: LoadClient, output_len: int, count: int | None = None) -> list[Send]:
        """Requests to one server, ready to be sent."""
        return [
            functools.partial(client.ask, prompt, output_len)
            if isinstance(prompt, str)
            else functools.partial(client.generate, prompt, output_len)
            for prompt in self.prompts[:count]
        ]


async def _measure(
    plain_url: str, drafting_url: str, api_key: str | None, how: ResolvedCase, workloads: Sequence[Workload],
    flags: argparse.Namespace,
) -> list[SpeculativeRow]:  # fmt: skip
    """The rows of one case: every workload with every number of requests at once."""
    rows = []
    async with LoadClient(plain_url, api_key) as plain, LoadClient(drafting_url, api_key) as drafting:
        model = await plain.model_name()
        for workload, concurrency in itertools.product(workloads, flags.concurrency):
            case = Case(concurrency, None, flags.timeout_s)
            for client in (plain, drafting):
                await warm_up(client, case, workload.sends(client, flags.output_len, MAX_WARM_UP_REQUESTS))
            sides = (
                Side(workload.sends(drafting, flags.output_len)), Side(workload.sends(plain, flags.output_len)),
            )  # fmt: skip
            with progress() as track:
                text = f"K {how.shape.depth}, topk {how.shape.topk}, {workload.name}, {concurrency} at once"
                await speculative.run_in_turns(case, *sides, track(text, 2 * flags.num_requests))
            row = speculative.to_speculative_row(case, workload.name, how, *sides, engine=ENGINE, model=model)
            keep_row(flags.output_json, row)
            rows.append(row)
    return rows


async def _workloads(url: str, api_key: str | None, flags: argparse.Namespace) -> list[Workload]:
    async with LoadClient(url, api_key) as client:
        return [await _workload(name, client, flags) for name in flags.workloads]


async def _workload(name: str, client: LoadClient, flags: argparse.Namespace) -> Workload:
    """The prompts follow from the seed. Questions of a file bear its name."""
    rng = random.Random(f"{flags.seed}/{name}")
    if name == SOURCE:
        pieces = library_text.source_pieces(rng, flags.num_requests)
        return Workload(name, [(await client.tokenize(piece))[: rng.randint(*PROMPT_TOKENS)] for piece in pieces])
    if flags.questions is None:
        return Workload(name, library_text.questions(rng, flags.num_requests))
    given = read_questions(flags.questions)
    return Workload(
        f"{name} of {Path(flags.questions).name}", [given[index % len(given)] for index in range(flags.num_requests)]
    )
