"""A Scheduler with a FakeWorker behind it, driven by hand."""

from collections import deque

from slipstream.config.processes import SchedulerConfig
from slipstream.messages.sampling import FinishReason, Logprob, SamplingParams
from slipstream.messages.to_scheduler import AddRequest, FromTokenizer
from slipstream.messages.to_tokenizer import FromScheduler, RequestFailed, TokenOutputs
from slipstream.messages.to_worker import Plan
from slipstream.scheduler.scheduler import Scheduler
from support.fake_worker import FakeWorker

VOCAB_SIZE = 5


def scheduler_config(**changes: object) -> SchedulerConfig:
    values: dict[str, object] = {
        "context_length": 64,
        "max_running_requests": 3,
        "chunked_prefill_size": 6,
        "page_size": 4,
        "prefix_cache": True,
        "max_steps_in_flight": 2,
        "log_level": "error",
    }
    return SchedulerConfig(**{**values, **changes})  # type: ignore[arg-type]


class Harness:
    """Keeps what each choice received: token ids, finish reason, logprobs."""

    def __init__(self, config: SchedulerConfig, num_pages: int) -> None:
        self.scheduler = Scheduler(config, num_pages)
        self.worker = FakeWorker(config.page_size, VOCAB_SIZE)
        self.plans: deque[Plan] = deque()
        self.sent_plans: list[Plan] = []
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.finishes: dict[tuple[str, int], FinishReason] = {}
        self.prompt_logprobs: dict[tuple[str, int], list[Logprob]] = {}
        self.num_cached: dict[tuple[str, int], int] = {}
        self.failed: dict[str, str] = {}
        self.others: list[FromScheduler] = []

    def send(self, message: FromTokenizer) -> None:
        self.scheduler.handle(message)
        self.receive()

    def add(self, rid: str, prompt: list[int], *, n: int = 1, **sampling: object) -> None:
        choices = [
            SamplingParams(seed=3, choice=choice, **{"max_new_tokens": 6, **sampling})  # type: ignore[arg-type]
            for choice in range(n)
        ]
        self.send(AddRequest(rid, prompt, choices))

    def plan(self) -> bool:
        """Send one plan to the worker's queue; False when the scheduler has none."""
        plan = self.scheduler.plan(now=0.0)
        if plan is None:
            return False
        self.plans.append(plan)
        self.sent_plans.append(plan)
        return True

    def work(self) -> bool:
        """Let the worker execute its oldest plan and return the result."""
        if not self.plans:
            return False
        self.scheduler.collect(self.worker.step(self.plans.popleft()))
        self.receive()
        return True

    def run(self, max_steps: int = 10_000) -> None:
        """Until nothing is left to do."""
        for _ in range(max_steps):
            while self.plan():
                pass
            if not self.work():
                assert self.scheduler.is_idle, "requests are left that nobody works on"
                return
        raise AssertionError("still not idle")

    def receive(self) -> None:
        for output in self.scheduler.take_outputs():
            match output:
                case TokenOutputs():
                    for item in output.outputs:
                        key = item.rid, item.choice
                        assert key not in self.finishes, f"{key} got an output after its finish"
                        self.tokens.setdefault(key, []).extend(item.token_ids)
                        self.num_cached[key] = item.num_cached
                        if item.prompt_logprobs is not None:
                            assert key not in self.prompt_logprobs, "prompt logprobs come once"
                            self.prompt_logprobs[key] = item.prompt_logprobs
                        if item.finish is not None:
                            self.finishes[key] = item.finish
                case RequestFailed():
                    self.failed[output.rid] = output.message
                case _:
                    self.others.append(output)
