"""GET /metrics. Two tables: what the scheduler reports, read at each scrape, and what the server counts itself.

Labels are outcomes and reasons only: never an id, a prompt, a path or a name that a client chose.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from slipstream.messages.to_tokenizer import Counters, SchedulerStatus
from slipstream.server.state import ServerState

PREFIX = "slipstream_"
VLLM_PREFIX = "vllm:"
NO_STATUS = SchedulerStatus(0, 0, 0, 0, 0, 0.0)


def _page_use(status: SchedulerStatus) -> float:
    """Share of KV pages that hold something running requests need."""
    if not status.num_pages:
        return 0.0
    return 1 - (status.num_pages_free + status.num_pages_cached) / status.num_pages


@dataclass(frozen=True)
class Reported:
    """A number of the scheduler's last status. `kind` is "gauge" or "counter" (then the name gets `_total`)."""

    name: str
    kind: str
    help: str
    read: Callable[[SchedulerStatus], float]


REPORTED = (
    Reported("running_requests", "gauge", "Choices that run", lambda s: s.num_running),
    Reported("waiting_requests", "gauge", "Choices that wait in the scheduler's queue", lambda s: s.num_waiting),
    Reported("kv_pages", "gauge", "KV pages in all", lambda s: s.num_pages),
    Reported("kv_pages_free", "gauge", "KV pages that hold nothing", lambda s: s.num_pages_free),
    Reported("kv_pages_cached", "gauge", "KV pages kept for later prompts only", lambda s: s.num_pages_cached),
    Reported("kv_page_use_ratio", "gauge", "Share of KV pages that running requests hold", _page_use),
    Reported("step_in_flight_seconds", "gauge", "Age of the oldest step in flight", lambda s: s.step_in_flight_s),
    Reported("steps", "counter", "Steps executed", lambda s: s.counters.num_steps),
    Reported(
        "prompt_tokens", "counter", "Prompt tokens of requests, for each choice", lambda s: s.counters.num_prompt_tokens
    ),
    Reported(
        "cached_tokens", "counter", "Prompt tokens found in the prefix cache", lambda s: s.counters.num_cached_tokens
    ),
    Reported("generated_tokens", "counter", "Tokens generated", lambda s: s.counters.num_generated_tokens),
    Reported("preemptions", "counter", "Requests put back for lack of pages", lambda s: s.counters.num_preemptions),
    Reported(
        "integrity_errors", "counter", "Breaches of page accounting, healed", lambda s: s.counters.num_integrity_errors
    ),
)

# Of a server that speculates; each under our prefix and, as dashboards for vLLM know it, under VLLM_PREFIX.
DRAFTED: tuple[tuple[str, str, Callable[[Counters], int]], ...] = (
    ("num_drafts", "Verify steps: of one choice, with at least one draft", lambda c: c.num_drafts),
    ("num_draft_tokens", "Drafts that were verified", lambda c: c.num_draft_tokens),
    ("num_accepted_tokens", "Drafts that were accepted", lambda c: c.num_accepted_tokens),
)

# name -> (help, label)
COUNTED = {
    "requests": ("Requests that ended, by outcome: stop, length, abort, error", "outcome"),
    "rejected": ("Requests refused before they ran, by reason", "reason"),
    "errors": ("Errors answered or sent in a stream, by class", "error"),
}

# name -> (help, upper bounds in seconds)
TIMED = {
    "time_to_first_token_seconds": (
        "From sending a prompt to the tokenizer until its first output",
        (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    ),
    "inter_token_seconds": (
        "Time for each further token: the time between two outputs over the tokens of the second",
        (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5),
    ),
    "request_seconds": (
        "From sending a prompt until its last output",
        (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
    ),
}


class Metrics:
    """All metrics of one server. An Observer of its Client."""

    def __init__(self, state: ServerState, num_in_flight: Callable[[], int], *, speculates: bool) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_StateCollector(state, num_in_flight, speculates))
        self._counters = {
            name: Counter(PREFIX + name, text, (label,), registry=self._registry)
            for name, (text, label) in COUNTED.items()
        }
        self._times = {
            name: Histogram(PREFIX + name, text, buckets=bounds, registry=self._registry)
            for name, (text, bounds) in TIMED.items()
        }

    def first_output(self, waited_s: float) -> None:
        self._times["time_to_first_token_seconds"].observe(waited_s)

    def tokens(self, count: int, elapsed_s: float) -> None:
        histogram = self._times["inter_token_seconds"]
        for _ in range(count):
            histogram.observe(elapsed_s / count)

    def ended(self, outcome: str, elapsed_s: float) -> None:
        self._counters["requests"].labels(outcome).inc()
        self._times["request_seconds"].observe(elapsed_s)

    def rejected(self, reason: str) -> None:
        """A request was refused; `reason` is one of a few words of ours."""
        self._counters["rejected"].labels(reason).inc()

    def failed(self, error: BaseException) -> None:
        """An error was answered or sent in a stream."""
        self._counters["errors"].labels(type(error).__name__).inc()

    def render(self) -> bytes:
        """The page, in Prometheus' text format."""
        return generate_latest(self._registry)


class _StateCollector(Collector):
    """Reads the state when scraped; keeps nothing."""

    def __init__(self, state: ServerState, num_in_flight: Callable[[], int], speculates: bool) -> None:
        self._state = state
        self._num_in_flight = num_in_flight
        self._speculates = speculates

    def collect(self) -> Iterator[Metric]:
        status = self._state.status or NO_STATUS
        for row in REPORTED:
            family = GaugeMetricFamily if row.kind == "gauge" else CounterMetricFamily
            yield family(PREFIX + row.name, row.help, value=row.read(status))
        own = {
            "in_flight_requests": ("Choices that clients wait for", self._num_in_flight()),
            "ready": ("1 when requests are accepted", self._state.phase == "ready"),
            "startup_seconds": ("What the start took", self._state.startup_s or 0.0),
        }
        for name, (text, value) in own.items():
            yield GaugeMetricFamily(PREFIX + name, text, value=value)
        if self._speculates:
            yield from _speculation(status)


def _speculation(status: SchedulerStatus) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        PREFIX + "spec_num_steps", "Longest path of drafts in the steps of now (K)", value=status.draft_depth or 0
    )
    for prefix in (PREFIX, VLLM_PREFIX):
        for name, text, read in DRAFTED:
            yield CounterMetricFamily(f"{prefix}spec_decode_{name}", text, value=read(status.counters))
        family = CounterMetricFamily(
            f"{prefix}spec_decode_num_accepted_tokens_per_pos",
            "Verify steps that accepted the draft at this position, from 0",
            labels=["position"],
        )
        for position, count in enumerate(status.counters.num_accepted_per_position):
            family.add_metric([str(position)], count)
        yield family
