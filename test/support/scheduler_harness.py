"""A Scheduler with a FakeWorker behind it, driven by hand."""

import random
from collections import deque

from slipstream.cache.prefix_tree import PrefixNode
from slipstream.config.drafting import DraftShape
from slipstream.config.processes import SchedulerConfig, SchedulerDrafts
from slipstream.messages.sampling import DraftStats, FinishReason, Logprob, SamplingParams
from slipstream.messages.to_scheduler import AddRequest, FromTokenizer
from slipstream.messages.to_tokenizer import FromScheduler, RequestFailed, TokenOutput, TokenOutputs
from slipstream.messages.to_worker import Plan
from slipstream.scheduler.draft_controller import DraftController
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


def chain(depth: int) -> SchedulerDrafts:
    """A draft with KV, as EAGLE's, that proposes chains."""
    return SchedulerDrafts(DraftShape(depth, 1, depth), adaptive=False, successor_depth=1, has_kv=True)


def tree(depth: int, topk: int, num_nodes: int) -> SchedulerDrafts:
    return SchedulerDrafts(DraftShape(depth, topk, num_nodes), adaptive=False, successor_depth=1, has_kv=True)


def lookup(depth: int) -> SchedulerDrafts:
    """One that has no KV, as n-gram lookup."""
    return SchedulerDrafts(DraftShape(depth, 1, depth), adaptive=False, successor_depth=0, has_kv=False)


class RandomController(DraftController):
    """Any depth in any step; warm or cold as it comes."""

    def __init__(self, drafts: SchedulerDrafts, seed: int) -> None:
        super().__init__(drafts.shape, adaptive=False, has_kv=drafts.has_kv)
        self._deepest = drafts.shape.depth
        self._may_cool = drafts.has_kv
        self._random = random.Random(seed)

    def choose(self, num_decode: int, num_warm: int) -> int:
        assert 0 <= num_warm <= num_decode and num_decode
        return self._random.randint(0, self._deepest if num_warm else 0)

    def admits_warm(self) -> bool:
        return self._random.random() < 0.7

    def goes_cold(self) -> bool:
        return self._may_cool and self._random.random() < 0.1


class Harness:
    """Keeps what each choice received: token ids, finish reason, logprobs, what became of drafts."""

    def __init__(
        self, config: SchedulerConfig, num_pages: int, controller: DraftController | None = None, seed: int = 0
    ) -> None:
        self.scheduler = Scheduler(config, num_pages, controller)
        self.worker = FakeWorker(config.page_size, VOCAB_SIZE, config.drafts, seed, self.published_pages)
        self.plans: deque[Plan] = deque()
        self.sent_plans: list[Plan] = []
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.finishes: dict[tuple[str, int], FinishReason] = {}
        self.logprobs: dict[tuple[str, int], list[Logprob]] = {}
        self.drafts: dict[tuple[str, int], DraftStats] = {}
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
                        self.receive_details(item)
                        if item.prompt_logprobs is not None:
                            assert key not in self.prompt_logprobs, "prompt logprobs come once"
                            self.prompt_logprobs[key] = item.prompt_logprobs
                        if item.finish is not None:
                            self.finishes[key] = item.finish
                case RequestFailed():
                    self.failed[output.rid] = output.message
                case _:
                    self.others.append(output)

    def receive_details(self, item: TokenOutput) -> None:
        key = item.rid, item.choice
        if item.logprobs is not None:
            assert [logprob.token_id for logprob in item.logprobs] == item.token_ids
            self.logprobs.setdefault(key, []).extend(item.logprobs)
        if item.drafts is None:
            assert key not in self.drafts, "counts do not go away"
            return
        before = self.drafts.get(key, DraftStats(0, (0,) * len(item.drafts.accepted)))
        assert before.num_verify <= item.drafts.num_verify <= before.num_verify + 1
        assert before.num_draft_tokens <= item.drafts.num_draft_tokens
        assert item.drafts.num_accepted - before.num_accepted <= len(item.token_ids)
        self.drafts[key] = item.drafts

    def published_pages(self) -> set[int]:
        """Every page of the prefix tree."""
        pages: set[int] = set()
        todo: list[PrefixNode] = [self.scheduler._pages._tree._root]
        while todo:
            node = todo.pop()
            todo.extend(node.children.values())
            pages.add(node.page)
        return pages
