"""Log lines of every process, in one format."""

import logging
import sys

LEVELS = ("debug", "info", "warning", "error")


def setup_logging(process: str, level: str) -> None:
    """Send this process's log records to stderr as `time LEVEL process: text`. Call once, in a process main."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {process}: %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger("slipstream")
    root.handlers = [handler]
    root.propagate = False
    root.setLevel(level.upper())


def get_logger(name: str) -> logging.Logger:
    """The logger of one module; pass `__name__`."""
    return logging.getLogger(name)
