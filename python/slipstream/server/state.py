"""What the server knows about the runtime behind it, and whether that is healthy."""

from dataclasses import dataclass, field
from typing import Literal

from slipstream.messages.to_server import ProcessFailed, Progress, Stage, ToServer
from slipstream.messages.to_tokenizer import SchedulerReady, SchedulerStatus

Phase = Literal["starting", "ready", "draining", "failed"]

HEARTBEAT_LIMIT_S = 10.0  # the scheduler sends one every second, also while a step runs


@dataclass
class ServerState:
    """The life of one server. The launcher moves the phase; every message of a child passes through handle()."""

    phase: Phase = "starting"
    stage: str = "starting the processes"  # for people: what happens now, or what failed
    scheduler: SchedulerReady | None = None
    status: SchedulerStatus | None = None
    status_time: float = 0.0  # time.monotonic() at which `status` arrived
    startup_s: float | None = None
    started_at: int = field(default=0)  # Unix time, for the `created` field of /v1/models

    def handle(self, message: ToServer, now: float) -> None:
        """Note a life sign. `now` is time.monotonic()."""
        match message:
            case SchedulerReady():
                self.scheduler = message
            case SchedulerStatus():
                self.status, self.status_time = message, now
            case Stage(process=process, text=text):
                self.stage = f"{process}: {text}"
            case Progress(process=process, text=text, done=done, total=total):
                self.stage = f"{process}: {text} {done} of {total}"
            case ProcessFailed(process=process, message=text):
                self.fail(f"the {process} process failed: {text}")
            case _:
                pass  # text for clients

    def ready(self, startup_s: float) -> None:
        """Requests may come. `startup_s` is what the whole start took."""
        if self.phase == "starting":
            self.phase, self.stage, self.startup_s = "ready", "ready", startup_s

    def drain(self) -> None:
        """No new requests; those in flight go on."""
        if self.phase != "failed":
            self.phase, self.stage = "draining", "shutting down: finishing the requests in flight"

    def fail(self, reason: str) -> None:
        """The runtime cannot go on. The first reason is the one that counts."""
        if self.phase != "failed":
            self.phase, self.stage = "failed", reason


def health(
    state: ServerState, now: float, watchdog_timeout_s: float, heartbeat_limit_s: float = HEARTBEAT_LIMIT_S
) -> tuple[bool, str]:
    """(healthy, reason). Pure; `now` is time.monotonic().

    Unhealthy: before the first readiness, after a failure, when the scheduler is silent, when one step takes longer
    than the watchdog allows. A server that drains is healthy (though not ready).
    """
    if state.phase in ("starting", "failed"):
        return False, f"{state.phase}: {state.stage}"
    if state.status is None:
        return True, state.phase
    silence_s = now - state.status_time
    if silence_s > heartbeat_limit_s:
        return (
            False,
            f"no life sign of the scheduler or the tokenizer for {silence_s:.1f} s (limit {heartbeat_limit_s:g} s)",
        )
    if state.status.step_in_flight_s > watchdog_timeout_s:
        return False, (
            f"a step has been running for {state.status.step_in_flight_s:.1f} s; "
            f"--watchdog-timeout-s is {watchdog_timeout_s:g}"
        )
    return True, state.phase


def num_tokens_limit(state: ServerState, context_length: int) -> int:
    """Most tokens of prompt plus answer: the KV pool's limit once it is known, the model's before."""
    return state.scheduler.max_sequence_len if state.scheduler is not None else context_length
