"""`slipstream check`: what a checkpoint is and whether it can be served, from its files' headers alone."""

import argparse
import dataclasses
import io
import json
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from slipstream.cli.check_tables import show
from slipstream.config.flags import AUTO, FlagParser, add_flags, check_fields, from_namespace
from slipstream.config.options import LaunchOptions
from slipstream.config.resolve import GPU_MEM_FRACTION, check_context_length
from slipstream.errors import ConfigError
from slipstream.launch.fit import fit
from slipstream.launch.look import Look, draft_path, look_at_draft, look_at_target
from slipstream.launch.report import describe, nothing_known, sizes
from slipstream.models.match import Match

GPU_MEMORY_GIB = (80.0, 141.0)  # what is shown unless one is named: H100 and H200
TENSOR_PARALLEL = (1, 2, 4, 8)
WIDE = 200  # columns, where nobody looks at a terminal: lines stay whole for grep
SHARED_FLAGS = (
    "model_path", "tokenizer_path", "revision", "config_format", "load_format", "context_length", "mem_fraction_static",
    "speculative_draft_model_path", "speculative_draft_model_revision", "speculative_draft_load_format",
)  # fmt: skip


def main(args: list[str]) -> int:
    """Returns 0 when the checkpoint, or the pair, can be served and 1 when it cannot."""
    options = make_parser().parse_args(args)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    check_fields(from_namespace(LaunchOptions, options))
    report = check(options)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(report, Console(width=None if sys.stdout.isatty() else WIDE))
        show_problems(report)
    return 1 if any(part["problems"] for part in parts(report).values()) else 0


def make_parser() -> FlagParser:
    parser = FlagParser(prog="slipstream check", description="Look at a checkpoint without loading it.")
    add_flags(parser, LaunchOptions, only=SHARED_FLAGS)
    parser.add_argument(
        "--gpu-memory-gib", type=_number(1, 1e6), metavar="X", help="memory of one GPU; none: 80 and 141"
    )
    parser.add_argument(
        "--tp", type=_number(1, 1024, int), metavar="N", help="GPUs that share the model; none: 1, 2, 4 and 8"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def parts(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The checkpoints of a report by role."""
    return {name: report[name] for name in ("target", "draft") if name in report}


def check(options: argparse.Namespace) -> dict[str, Any]:
    """{"target": facts, "draft": facts (where one is named or ships with the target), "fit": rows, "not_shared": why
    some have no row}, each checkpoint with `problems`.

    There are rows where nothing is wrong: sizes of damaged files would mislead.
    """
    looks = _look(from_namespace(LaunchOptions, options))
    matches = {role: look.match for role, look in looks.items() if look.match is not None}
    report = {role: _facts(look) for role, look in looks.items()}
    if options.context_length != AUTO and "target" in matches:
        check_context_length(options.context_length, matches["target"].spec.context_length)
    if options.tp is not None:
        for role, match in matches.items():
            report[role]["problems"] += match.sharding_problems(options.tp)
    sound = not any(part["problems"] for part in report.values())
    return report | (_what_fits(options, list(matches.values())) if sound else {"fit": [], "not_shared": {}})


def _look(options: LaunchOptions) -> dict[str, Look]:
    """At the target, and at the draft that is named or ships with it."""
    looks = {"target": look_at_target(options, needs_tokenizer=False)}
    path = draft_path(options)
    if path is not None:
        looks["draft"] = look_at_draft(path, options, looks["target"].spec)
    elif options.speculative_draft_model_revision is not None or options.speculative_draft_load_format != AUTO:
        raise ConfigError("a revision or load format of a draft is given without --speculative-draft-model-path")
    return looks


def _facts(look: Look) -> dict[str, Any]:
    if look.match is None:
        return nothing_known(look.path, list(look.problems))
    return describe(look.match, list(look.problems)) | {"warnings": list(look.warnings)}


def _what_fits(options: argparse.Namespace, matches: list[Match]) -> dict[str, Any]:
    """Rows for the numbers of GPUs that can share the models, and why the others cannot."""
    models, spec = [sizes(match) for match in matches], matches[0].spec
    context = spec.context_length if options.context_length == AUTO else options.context_length
    fraction = GPU_MEM_FRACTION if options.mem_fraction_static == AUTO else options.mem_fraction_static
    memories = [options.gpu_memory_gib] if options.gpu_memory_gib is not None else GPU_MEMORY_GIB
    degrees = [options.tp] if options.tp is not None else TENSOR_PARALLEL
    problems = {tp: [problem for match in matches for problem in match.sharding_problems(tp)] for tp in degrees}
    return {
        "fit": [
            dataclasses.asdict(fit(models, context, memory, fraction, tp))
            for memory in memories
            for tp in degrees
            if not problems[tp]
        ],
        "not_shared": {str(tp): reasons[0] for tp, reasons in problems.items() if reasons},
    }


def show_problems(report: Mapping[str, Any]) -> None:
    """Warnings, then problems, on stderr; where there is none, the verdict on stdout."""
    for name, part in parts(report).items():
        for warning in part["warnings"]:
            print(f"warning: {name}: {warning}", file=sys.stderr)
    for name, part in parts(report).items():
        if part["problems"]:
            print(f"{part['path']} cannot be served as {name}:", *part["problems"], sep="\n  - ", file=sys.stderr)
        else:
            print(f"{part['path']}: no problem as {name}")


def _number(low: float, high: float, kind: type[float] = float) -> Callable[[str], float]:
    """A parser of numbers from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    return parse
