"""The error tree. Every message says what, which value, what limit, and which flag or field to change.

SlipstreamError
├── ConfigError          a flag or an option object is wrong
├── CheckpointError      a checkpoint folder cannot be served; lists every problem at once
├── RequestError         one request is refused; carries the HTTP status and the field
├── Overloaded           the server is full; the client should come back later
└── WorkerDied           a process of the runtime died or hangs; all requests in flight fail
"""

from collections.abc import Sequence


class SlipstreamError(Exception):
    """Base of every error that Slipstream raises on purpose."""


class ConfigError(SlipstreamError):
    """A flag or an option has a value that cannot work."""


class CheckpointError(SlipstreamError):
    """A checkpoint cannot be served. `problems` holds one sentence for each thing that is wrong."""

    def __init__(self, path: str, problems: Sequence[str]) -> None:
        self.path = path
        self.problems = tuple(problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"cannot load the checkpoint {path}:\n{lines}")


class RequestError(SlipstreamError):
    """One request is refused. `status` is the HTTP status, `param` the field to change (or None)."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


class Overloaded(RequestError):
    """The queue is full: HTTP 503 with Retry-After."""

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message, status=503, code="overloaded")
        self.retry_after_s = retry_after_s


class WorkerDied(SlipstreamError):
    """A process of the runtime died or stopped answering."""
