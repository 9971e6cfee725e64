"""`slipstream bench one-batch`: one engine start, then batches of random prompts, one shape after the other."""

import argparse
import contextlib
import dataclasses
import random
import tempfile
import time
from pathlib import Path

from rich.console import Console

from slipstream.bench import one_batch, results
from slipstream.bench.devices import DEVICE_SPEEDS, DeviceSpeed, gpu_name
from slipstream.bench.measured import Setting, measured_row, pair_cost
from slipstream.bench.one_batch import Shape
from slipstream.bench.presets import PRESETS, write_preset
from slipstream.bench.process_age import process_age_s
from slipstream.bench.rows import OneBatchRow
from slipstream.bench.tables import one_batch_line, one_batch_table
from slipstream.bench.targets import CASE_SETS, shapes_of
from slipstream.bench.workload import ordinary_token_ids
from slipstream.cli.bench_common import (
    ENGINE,
    add_common_flags,
    add_shape_flags,
    check_output,
    keep_row,
    positive,
    progress,
    whole_number,
)
from slipstream.config.flags import AUTO, FlagParser, from_namespace
from slipstream.config.options import LaunchOptions
from slipstream.engine import Engine
from slipstream.errors import ConfigError
from slipstream.launch.prepare import Prepared, prepare
from slipstream.tokenizer.process import load_tokenizer

BATCH_SIZES = [1, 8]


def one_batch_parser() -> FlagParser:
    """Every server flag, the shapes, and presets of models."""
    parser = FlagParser(
        prog="slipstream bench one-batch",
        description="Time batches of random prompts through the Engine, with the processes and sockets of a server.",
    )
    parser.add_argument(
        "--preset", choices=list(PRESETS),
        help="measure a model of this size with random weights and a made-up tokenizer, the prefix cache off",
    )  # fmt: skip
    parser.add_argument("--draft", action="store_true", help="with --preset: and an EAGLE draft of its size")
    parser.add_argument(
        "--cases", choices=list(CASE_SETS),
        help="with --preset: in place of a shape, all those that a target is set for, or one kind of them",
    )  # fmt: skip
    add_shape_flags(parser, batch_sizes=BATCH_SIZES)
    parser.add_argument("--runs", type=whole_number, default=3, metavar="N", help="timed runs of each batch size")
    parser.add_argument("--in-process", action="store_true", help="all in one process, without sockets, to compare")
    parser.add_argument(
        "--memory-bandwidth-gbs", type=positive, metavar="X",
        help="memory bandwidth in GB/s, for the least time that a step can take; none: that of a known GPU",
    )  # fmt: skip
    add_common_flags(parser, server=False)
    return parser


def bench_one_batch(args: list[str]) -> int:
    """Load the model once, then measure every shape. What was measured is kept, whatever ends the run."""
    parser = one_batch_parser()
    flags = parser.parse_args(args)
    shapes = _shapes(parser, flags)
    check_output(flags.output_json)
    options = from_namespace(LaunchOptions, flags)
    command = results.command_line("slipstream", ["bench", "one-batch", *args])
    with contextlib.ExitStack() as stack:
        write_s = 0.0
        if flags.preset is not None:
            started_s = time.perf_counter()
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slipstream-preset-")))
            options = _with_preset(options, flags, shapes, folder)
            write_s = time.perf_counter() - started_s
        options = _room_for(options, max(shape.batch_size for shape in shapes))
        prepared = prepare(options)
        one_batch.check_shapes(
            shapes,
            context_length=prepared.resolved.scheduler.context_length,
            max_running_requests=prepared.resolved.scheduler.max_running_requests,
        )
        values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
        engine = stack.enter_context(Engine(in_process=flags.in_process, **values))
        setting = _setting(flags, prepared, start_s=process_age_s() - write_s, command=command)
        rows = _measure(engine, shapes, flags, prepared, setting)
    Console().print(one_batch_table(rows))
    return 0


def _measure(
    engine: Engine, shapes: list[Shape], flags: argparse.Namespace, prepared: Prepared, setting: Setting
) -> list[OneBatchRow]:
    token_ids = ordinary_token_ids(load_tokenizer(prepared.resolved.tokenizer))
    rng = random.Random(flags.seed)
    rows = []
    console = Console(stderr=True)
    console.print(f"ready in {setting.start_s:.1f} s", highlight=False)
    if setting.speed is not None and isinstance(why := pair_cost(prepared), str):
        console.print(f"note: no floor is computed: {why}", highlight=False)
    with progress() as track:
        for shape in shapes:
            num_steps = 1 + flags.runs * (1 if shape.output_len == 1 else 2)
            on_run = track(f"batch {shape.batch_size}, {shape.input_len} in", num_steps)
            timing = one_batch.measure(
                engine, shape, token_ids=token_ids, num_runs=flags.runs, rng=rng, on_run=on_run
            )  # fmt: skip
            row = measured_row(timing, setting)
            keep_row(flags.output_json, row)
            console.print(one_batch_line(row), highlight=False, soft_wrap=True)
            rows.append(row)
    return rows


def _shapes(parser: FlagParser, flags: argparse.Namespace) -> list[Shape]:
    """Raises ConfigError for flags of which one would not be read."""
    if flags.preset is None and (flags.draft or flags.cases):
        name = "--draft" if flags.draft else "--cases"
        raise ConfigError(f"{name} belongs to a preset; name one with --preset, choose from {', '.join(PRESETS)}")
    if not flags.cases:
        return [Shape(size, flags.input_len, flags.output_len) for size in flags.batch_size]
    for name in ("batch_size", "input_len", "output_len"):
        if getattr(flags, name) != parser.get_default(name):
            raise ConfigError(f"--{name.replace('_', '-')} is given, but --cases brings its own shapes; leave one out")
    shapes = shapes_of(flags.preset, has_draft=flags.draft, cases=flags.cases)
    if not shapes:
        with_draft = " with --draft" if flags.draft else ""
        raise ConfigError(f"no target is set for --cases {flags.cases} of {flags.preset}{with_draft}; give a shape")
    return shapes


def _with_preset(options: LaunchOptions, flags: argparse.Namespace, shapes: list[Shape], folder: Path) -> LaunchOptions:
    """Write the preset's files into `folder` and point the options at them."""
    of_preset = {
        "model_path": None, "load_format": AUTO, "config_format": AUTO, "tokenizer_path": None, "revision": None,
        "speculative_draft_model_path": None, "speculative_draft_load_format": AUTO,
    }  # fmt: skip
    for name, default in of_preset.items():
        if getattr(options, name) != default:
            raise ConfigError(f"--{name.replace('_', '-')} is given, but --preset writes its own files; leave one out")
    folders = write_preset(PRESETS[flags.preset], folder, flags.preset)
    needed = max(shape.input_len + shape.output_len for shape in shapes)
    return dataclasses.replace(
        options,
        model_path=str(folders.target),
        load_format="dummy",
        speculative_draft_model_path=str(folders.draft) if flags.draft else None,
        disable_radix_cache=True,
        context_length=needed if options.context_length == AUTO else options.context_length,
    )


def _room_for(options: LaunchOptions, batch_size: int) -> LaunchOptions:
    """The whole batch runs at once, unless the user has set another limit."""
    if options.max_running_requests != AUTO:
        return options
    at_least = max(batch_size, prepare(options).resolved.scheduler.max_running_requests)
    return dataclasses.replace(options, max_running_requests=at_least)


def _setting(flags: argparse.Namespace, prepared: Prepared, *, start_s: float, command: str) -> Setting:
    name = gpu_name() if prepared.resolved.worker.device == "cuda" else None
    speed = DEVICE_SPEEDS.get(name) if name is not None else None
    if flags.memory_bandwidth_gbs is not None:
        speed = DeviceSpeed(flags.memory_bandwidth_gbs, speed.bf16_tflops if speed is not None else None)
    return Setting(
        engine=ENGINE,
        preset=flags.preset,
        in_process=flags.in_process,
        prepared=prepared,
        device_name=name,
        speed=speed,
        start_s=start_s,
        command=command,
    )
