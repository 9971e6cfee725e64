"""Where the time of a decode step goes on a GPU: a table of kernels, and the gaps between them.

    python scripts/profile_step.py --preset 7b --batch-size 1
    python scripts/profile_step.py --preset 7b --batch-size 64 --draft --speculative-num-steps 3 \\
        --simulate-acceptance-length 3
    python scripts/profile_step.py --from-trace trace.json --first-kernel decode_rows

All engine flags are taken. Tokenizer, scheduler and worker run in this one process, for the profiler to see the worker:
a step that waits for Python here may not wait in a server, never the other way round. The table is Markdown, for
bench/notes/.
"""

import argparse
import dataclasses
import gzip
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from slipstream.bench.kernel_trace import gpu_events
from slipstream.bench.presets import PRESETS, write_preset
from slipstream.bench.step_profile import profile_steps, profile_table
from slipstream.bench.workload import ordinary_token_ids, random_prompts
from slipstream.cli.bench_common import whole_number
from slipstream.config.flags import FlagParser, add_flags, from_namespace
from slipstream.config.options import LaunchOptions
from slipstream.engine import Engine
from slipstream.errors import SlipstreamError
from slipstream.tokenizer.process import load_tokenizer

WARM_UP_OUTPUT_LEN = 32


def make_parser() -> FlagParser:
    parser = FlagParser(prog="profile_step.py", description="Where the time of a decode step goes.")
    parser.add_argument("--preset", choices=list(PRESETS), default="7b", help="size of the model; weights are random")
    parser.add_argument("--draft", action="store_true", help="and an EAGLE draft of its size")
    parser.add_argument("--batch-size", type=whole_number, default=1, metavar="N", help="requests at once")
    parser.add_argument("--input-len", type=whole_number, default=256, metavar="N", help="tokens of each prompt")
    parser.add_argument("--output-len", type=whole_number, default=97, metavar="N", help="tokens of each answer")
    parser.add_argument("--steps", type=whole_number, default=32, metavar="N", help="steps to look at, at most")
    parser.add_argument("--rows", type=whole_number, default=25, metavar="N", help="kernels in the table")
    parser.add_argument("--first-kernel", metavar="REGEX", help="begins a step; none: what follows the largest gap")
    parser.add_argument("--trace", metavar="FILE", help="keep the trace, for chrome://tracing or Perfetto")
    parser.add_argument("--from-trace", metavar="FILE", help="look at a trace that was kept; nothing is run")
    add_flags(parser.add_argument_group("engine flags"), LaunchOptions, server=False)
    parser.set_defaults(log_level="warning")
    return parser


def record_trace(flags: argparse.Namespace, trace: Path) -> None:
    """Run one batch with the profiler on, after two without."""
    from torch.profiler import ProfilerActivity, profile

    with tempfile.TemporaryDirectory(prefix="slipstream-preset-") as folder:
        folders = write_preset(PRESETS[flags.preset], Path(folder), flags.preset)
        options = dataclasses.replace(
            from_namespace(LaunchOptions, flags),
            model_path=str(folders.target),
            load_format="dummy",
            speculative_draft_model_path=str(folders.draft) if flags.draft else None,
            disable_radix_cache=True,
            context_length=flags.input_len + max(flags.output_len, WARM_UP_OUTPUT_LEN),
        )
        values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
        with Engine(in_process=True, **values) as engine:
            token_ids, rng = ordinary_token_ids(load_tokenizer(engine.resolved.tokenizer)), random.Random(0)

            def run(output_len: int) -> None:
                prompts = random_prompts(rng, token_ids, flags.batch_size, flags.input_len)
                engine.generate(prompts, {"max_new_tokens": output_len, "temperature": 0, "ignore_eos": True})

            run(WARM_UP_OUTPUT_LEN)
            with profile(activities=[ProfilerActivity.CUDA]):  # the profiler's own first start takes seconds
                run(WARM_UP_OUTPUT_LEN)
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                run(flags.output_len)
            profiler.export_chrome_trace(str(trace))


def read_trace(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    trace: dict[str, Any] = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    return trace


def main(args: list[str]) -> int:
    flags = make_parser().parse_args(args)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(flags.from_trace or flags.trace or Path(folder) / "trace.json")
            if flags.from_trace is None:
                record_trace(flags, path)
            profile = profile_steps(gpu_events(read_trace(path)), flags.first_kernel, flags.steps)
    except (SlipstreamError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    drafts = " and a draft" if flags.draft else ""
    source = f"{flags.preset}{drafts}, batch {flags.batch_size}, in {flags.input_len}"
    print(f"{flags.from_trace or source}: {profile_table(profile, flags.rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
