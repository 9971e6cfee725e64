"""`slipstream serve`: parse the flags, resolve them, serve."""

import sys

from slipstream.config.flags import FlagParser, add_flags, flag_name, from_namespace
from slipstream.config.options import LaunchOptions
from slipstream.config.resolve import Resolved
from slipstream.errors import SlipstreamError
from slipstream.launch.prepare import prepare
from slipstream.launch.serve import serve
from slipstream.log import setup_logging

NOT_YET = {
    "--tp": "a model runs on one device",
    "--tensor-parallel": "a model runs on one device",
}


def make_parser() -> FlagParser:
    """The parser of every server flag."""
    parser = FlagParser(prog="slipstream serve", description="Serve a model over HTTP.", not_yet=NOT_YET)
    add_flags(parser, LaunchOptions)
    parser.add_argument(
        "--print-config", action="store_true", help="print every resolved value with its reason, and exit"
    )
    return parser


def main(args: list[str]) -> int:
    """Returns the exit code: 0 after a signal, 1 after a failure, 2 for a bad flag."""
    namespace = make_parser().parse_args(args)
    options = from_namespace(LaunchOptions, namespace)
    try:
        prepared = prepare(options)
        if namespace.print_config:
            print_config(prepared.resolved)
            return 0
        setup_logging("server", prepared.resolved.server.log_level)
        return serve(prepared)
    except SlipstreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def print_config(resolved: Resolved) -> None:
    """One line for each flag: name, value, reason. Secrets are shown as ***."""
    secrets = {name for name, field in LaunchOptions.__dataclass_fields__.items() if field.metadata["secret"]}
    lines = [
        (flag_name(name), "***" if name in secrets and value is not None else str(value), reason)
        for name, (value, reason) in sorted(resolved.reasons.items())
    ]
    flag_width, value_width = (max(len(line[column]) for line in lines) for column in (0, 1))
    for flag, value, reason in lines:
        print(f"{flag:{flag_width}}  {value:{value_width}}  {reason}")
