"""The console script: `slipstream serve | check | bench | chat`."""

import importlib
import os
import signal
import sys

from slipstream import __version__
from slipstream.config.flags import FlagParser
from slipstream.errors import SlipstreamError

COMMANDS = {
    "serve": "start a server (the same as python -m slipstream.launch_server)",
    "check": "look at a checkpoint without loading it",
    "chat": "talk to a running server",
    "bench": "measure: one-batch, serving, speculative",
}


def main(args: list[str] | None = None) -> int:
    """Dispatch to the command's own module, imported only now: `slipstream chat` must not load a server."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] not in COMMANDS:
        _usage(args)
    if args[0] == "serve":
        _stop_quietly()
    command = importlib.import_module(f"slipstream.cli.{args[0]}")
    try:
        return int(command.main(args[1:]))
    except SlipstreamError as error:
        print(f"slipstream {args[0]}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _stop_quietly() -> None:
    """Ctrl-C and SIGTERM end a start without a word, until the server has handlers of its own: nothing runs yet."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))


def _usage(args: list[str]) -> None:
    parser = FlagParser(prog="slipstream", description="A serving runtime for Mistral checkpoints.")
    parser.add_argument("--version", action="version", version=f"slipstream {__version__}")
    parser.add_argument("command", choices=list(COMMANDS), help="; ".join(f"{k}: {v}" for k, v in COMMANDS.items()))
    parser.add_argument("arguments", nargs="*", help="see slipstream COMMAND --help")
    parser.parse_args(args or ["--help"])
