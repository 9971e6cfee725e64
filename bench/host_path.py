"""What the host does for one step, per process: no model, no GPU, made-up messages.

    python bench/host_path.py                       every part at 1, 64 and 256 requests
    python bench/host_path.py --parts scheduler --requests 256 --profile
    python bench/host_path.py --record FILE         keep the figures

scheduler   a StepResult frame in -> the next Plan and the TokenOutputs out, as frames
prefill     the same while 256 new prompts are admitted and computed in chunks, the prefix cache on
tokenizer   a TokenOutputs frame in -> a TextOutputs frame out
client      a TextOutputs frame in -> every waiting consumer of the event loop has its output
link        real processes and sockets: a result leaves the worker -> the next plan is there, the text is there

Frames are encoded and decoded as between processes; only `link` has sockets. A step brings `--tokens` tokens for each
request, with drafts as EAGLE's. Figures are microseconds of a step: the median, and the 99th of 100; of the link by the
clock, of all others the thread's CPU time, which does not count what else the machine does.
"""

import argparse
import asyncio
import cProfile
import gc
import math
import multiprocessing
import pstats
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import mistral_common
import zmq
from rich.console import Console
from rich.table import Table

from slipstream.bench import library_text, results
from slipstream.config.drafting import DraftShape
from slipstream.config.processes import SchedulerConfig, SchedulerDrafts, TokenizerConfig
from slipstream.messages.codec import Codec
from slipstream.messages.queues import ZmqInbox, ZmqOutbox
from slipstream.messages.sampling import DraftStats, SamplingParams
from slipstream.messages.to_scheduler import AddRequest, SlotResult, StepResult, ToScheduler, WorkerReady
from slipstream.messages.to_server import TextOutput, TextOutputs, ToServer
from slipstream.messages.to_tokenizer import (
    FromServer,
    Generate,
    SchedulerReady,
    TokenOutput,
    TokenOutputs,
    TokenPrompt,
    ToTokenizer,
)
from slipstream.messages.to_worker import Plan, ToWorker
from slipstream.scheduler import process as scheduler_process
from slipstream.scheduler.process import SchedulerLoop
from slipstream.server.client import Client
from slipstream.tokenizer import process as tokenizer_process
from slipstream.tokenizer.long_prompts import LongPrompts
from slipstream.tokenizer.process import load_tokenizer, make_core
from slipstream.tokenizer.text_tokenizer import TextTokenizer

REPOSITORY = Path(__file__).resolve().parent.parent
EMBEDDED = REPOSITORY / "python" / "slipstream" / "embedded" / "tekken.json"
LARGE = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"  # 131072 tokens
PROMPT_LEN = 512
CHUNK = 8192  # tokens of prompts in one step
DEPTH = 3  # drafts of a step
STEP_S = 0.012
SEED = 5
STOP = "\n\n\n\n"
PARTS = ("scheduler", "prefill", "tokenizer", "client", "link")
GOALS_US = {("scheduler", 256): 2500.0, ("scheduler", 1): 150.0, ("prefill", 256): 5000.0}
GOALS_US |= {("tokenizer", 256): 5000.0, ("client", 256): 3000.0}

T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """Microseconds of each step of one case."""

    part: str
    case: str
    num_requests: int
    step_us: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.step_us)

    @property
    def p99(self) -> float:
        return sorted(self.step_us)[math.ceil(0.99 * len(self.step_us)) - 1]

    @property
    def goal(self) -> float | None:
        return GOALS_US.get((self.part, self.num_requests))


class FrameQueue(Generic[T]):
    """Inbox and outbox without a socket: messages are frames in between."""

    def __init__(self, kind: Any) -> None:
        self._codec: Codec[T] = Codec(kind)
        self.frames: deque[bytes] = deque()

    def put(self, message: T) -> None:
        self.frames.append(self._codec.encode(message))

    def drain(self) -> list[T]:
        messages = [self._codec.decode(frame) for frame in self.frames]
        self.frames.clear()
        return messages

    def wait(self, timeout_s: float) -> bool:
        return bool(self.frames)


class Profile:
    """Microseconds of the steps that it is given, and what they spend them on if that is wanted."""

    def __init__(self, profile: bool) -> None:
        settle()
        self._profiler = cProfile.Profile() if profile else None
        self.step_us: list[float] = []

    def time(self, step: Callable[[], None]) -> None:
        started = time.thread_time()
        if self._profiler is not None:
            self._profiler.runcall(step)
        else:
            step()
        self.step_us.append((time.thread_time() - started) * 1e6)

    def show(self) -> None:
        if self._profiler is not None:
            pstats.Stats(self._profiler).sort_stats("tottime").print_stats(30)


@dataclass(frozen=True)
class Load:
    """How much of everything."""

    num_requests: int
    num_steps: int
    num_tokens: int  # of one request in one step
    profile: bool


def settle() -> None:
    """As in a process that has just loaded: no garbage of other cases, and collections look at what comes now alone."""
    gc.collect()
    gc.freeze()


def rid(i: int) -> str:
    """As long as those that the server makes."""
    return f"gen-{i:032x}"


# ---- scheduler


class MadeUpWorker:
    """Answers plans with random tokens: `num_tokens` for a decode slot, fewer where there are not so many drafts."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._random = random.Random(SEED)

    def step(self, plan: Plan) -> StepResult:
        slots = [SlotResult(chunk.slot, self._tokens(1) if chunk.last else []) for chunk in plan.chunks]
        for slot in plan.decode:
            depth = plan.draft_depths.get(slot, 0)
            slots.append(SlotResult(slot, self._tokens(min(self._num_tokens, depth + 1)), num_drafts=depth))
        return StepResult(plan.step, slots, STEP_S)

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(3, 131072) for _ in range(count)]


def scheduler_config(num_tokens: int, page_size: int = 16) -> SchedulerConfig:
    drafts = SchedulerDrafts(DraftShape(DEPTH, 1, DEPTH), adaptive=True, successor_depth=1, has_kv=True)
    return SchedulerConfig(
        context_length=32768,
        max_running_requests=256,
        chunked_prefill_size=CHUNK,
        page_size=page_size,
        prefix_cache=True,
        max_steps_in_flight=2,
        log_level="error",
        drafts=drafts if num_tokens > 1 else None,
    )


def add_requests(num_requests: int, max_new_tokens: int) -> Iterator[AddRequest]:
    source = random.Random(SEED)
    for i in range(num_requests):
        prompt = [source.randrange(3, 131072) for _ in range(PROMPT_LEN)]
        yield AddRequest(f"{i}:{rid(i)}", prompt, [SamplingParams(max_new_tokens, i, stop_token_ids=(2,))])


class SchedulerBench:
    """A SchedulerLoop between frames, and the made-up worker that answers it."""

    def __init__(self, load: Load, page_size: int, num_tokens: int) -> None:
        self.inbox: FrameQueue[ToScheduler] = FrameQueue(ToScheduler)
        self._to_worker: FrameQueue[Plan] = FrameQueue(ToWorker)
        self._to_tokenizer: FrameQueue[Any] = FrameQueue(ToTokenizer)
        config = scheduler_config(num_tokens, page_size)
        self.loop = SchedulerLoop(config, self.inbox, self._to_worker, self._to_tokenizer, strict=True)
        self._worker = MadeUpWorker(num_tokens)
        self._plans: deque[Plan] = deque()
        num_rows = PROMPT_LEN + (num_tokens + DEPTH) * (load.num_steps + 100)
        self.inbox.put(WorkerReady(load.num_requests * (num_rows // page_size + 2) + 1, {}))
        self.loop.turn(0.0)

    def work(self) -> bool:
        """The worker ends a step, its result is put into the inbox; says whether the step had decode rows alone."""
        self._plans.extend(self._to_worker.drain())
        self._to_tokenizer.frames.clear()
        plan = self._plans.popleft()
        self.inbox.put(self._worker.step(plan))
        return not plan.chunks

    @property
    def has_plans(self) -> bool:
        return bool(self._plans or self._to_worker.frames)

    def turn(self) -> None:
        self.loop.turn(0.0)


def bench_scheduler(load: Load) -> Iterator[Figure]:
    for num_tokens in (1, load.num_tokens):
        bench = SchedulerBench(load, 16, num_tokens)
        for message in add_requests(load.num_requests, max_new_tokens=30_000):
            bench.inbox.put(message)
        bench.turn()
        while not bench.work():
            bench.turn()
        bench.turn()
        profile = Profile(load.profile)
        for _ in range(load.num_steps):
            bench.work()
            profile.time(bench.turn)
        profile.show()
        case = "plain" if num_tokens == 1 else f"drafts, {num_tokens} tokens"
        yield Figure("scheduler", case, load.num_requests, profile.step_us)


def bench_prefill(load: Load) -> Iterator[Figure]:
    """From the arrival of all prompts to their ends; then once more with the same, which the prefix cache has."""
    for page_size in (1, 16):
        bench = SchedulerBench(load, page_size, load.num_tokens)
        for case in ("new", "cached"):
            profile = Profile(load.profile)
            for message in add_requests(load.num_requests, max_new_tokens=64):
                bench.inbox.put(message)
            profile.time(bench.turn)
            arrival_us = profile.step_us.pop()
            while not bench.work():
                profile.time(bench.turn)
            prefill_us, profile.step_us = profile.step_us, []
            bench.turn()
            while bench.has_plans:
                bench.work()
                profile.time(bench.turn)
            profile.show()
            name = f"{case}, page_size {page_size}"
            if prefill_us:
                yield Figure("prefill", f"{name}: chunks", load.num_requests, prefill_us)
            yield Figure("prefill", f"{name}: all arrive at once", load.num_requests, [arrival_us])
            yield Figure("prefill", f"{name}: all end at once", load.num_requests, [max(profile.step_us)])


# ---- tokenizer


def tokenizer_config(path: Path) -> TokenizerConfig:
    return TokenizerConfig("tekken", str(path), 131072, (2,), None, None, "error")


def text_ids(tokenizer: TextTokenizer) -> list[int]:
    """Ids of real text, with characters of more than one byte among them."""
    return tokenizer.encode(" Größe, 東京, привет 😀 ".join(library_text.source_pieces(random.Random(SEED), 30)))


def token_outputs(ids: Sequence[int], load: Load) -> Iterator[TokenOutputs]:
    places = [(37 * i) % (len(ids) // 2) for i in range(load.num_requests)]
    for step in range(load.num_steps):
        drafts = DraftStats(DEPTH * (step + 1), (0, 0, step + 1, 0)) if load.num_tokens > 1 else None
        outputs = []
        for i, place in enumerate(places):
            start = (place + step * load.num_tokens) % (len(ids) - load.num_tokens)
            token_ids = list(ids[start : start + load.num_tokens])
            outputs.append(TokenOutput(rid(i), 0, token_ids, PROMPT_LEN, 0, drafts=drafts))
        yield TokenOutputs(outputs)


class TokenizerBench:
    """A TokenizerCore between frames, in which every request runs."""

    def __init__(self, path: Path, load: Load, stop: tuple[str, ...]) -> None:
        config = tokenizer_config(path)
        tokenizer = load_tokenizer(config)
        self.ids = text_ids(tokenizer)
        self.inbox: FrameQueue[ToTokenizer] = FrameQueue(ToTokenizer)
        self.to_server: FrameQueue[Any] = FrameQueue(ToServer)
        self._core = make_core(config, tokenizer, FrameQueue(ToScheduler), self.to_server, decoder=None)
        self._requests: deque[ToTokenizer] = deque()
        self._long_prompts = LongPrompts(self._core.encode)
        self.inbox.put(SchedulerReady(32768, 1_000_000, 16, {}))
        for i in range(load.num_requests):
            self.inbox.put(Generate(rid(i), TokenPrompt(self.ids[:PROMPT_LEN]), SamplingParams(30_000, i), stop=stop))
        self.turn()
        while self._requests:
            self.turn()

    def turn(self) -> None:
        tokenizer_process.turn(self._core, self.inbox, self._requests, self._long_prompts)

    def close(self) -> None:
        self._long_prompts.close()


def bench_tokenizer(load: Load) -> Iterator[Figure]:
    for path, name in ((EMBEDDED, "embedded"), (LARGE, "131072")):
        for stop, what in (((), ""), ((STOP,), ", stop string")):
            bench = TokenizerBench(path, load, stop)
            profile = Profile(load.profile)
            for message in token_outputs(bench.ids, load):
                bench.inbox.put(message)
                bench.to_server.frames.clear()
                profile.time(bench.turn)
                assert len(bench.to_server.frames) == 1
            profile.show()
            bench.close()
            yield Figure("tokenizer", f"{name}{what}", load.num_requests, profile.step_us)


# ---- client


class Consumers:
    """One task for each request, as an Engine's or a server's."""

    def __init__(self, client: Client, num_requests: int, *, takes: bool) -> None:
        self.num_received = 0
        self._tasks = [asyncio.create_task(self._read(client, i, takes)) for i in range(num_requests)]

    async def _read(self, client: Client, i: int, takes: bool) -> None:
        request = Generate(rid(i), TokenPrompt([1]), SamplingParams(30_000, i))
        outputs: list[TextOutput] = []
        async with client.generate(request) as generation:
            if takes:
                while not generation.done:
                    outputs += await generation.take(15.0)
                    self.num_received += 1
            else:
                async for output in generation:
                    outputs.append(output)
                    self.num_received += 1

    async def wait_for(self, count: int) -> None:
        while self.num_received < count:
            await asyncio.sleep(0)

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


def text_outputs(load: Load) -> Iterator[TextOutputs]:
    for step in range(load.num_steps):
        drafts = DraftStats(DEPTH * (step + 1), (0, 0, step + 1, 0)) if load.num_tokens > 1 else None
        ids = [1000 + step + i for i in range(load.num_tokens)]
        generated = (step + 1) * load.num_tokens
        yield TextOutputs(
            [
                TextOutput(f"{i}:{rid(i)}", 0, " a few words", ids, PROMPT_LEN, 0, generated, drafts=drafts)
                for i in range(load.num_requests)
            ]
        )


async def run_client(load: Load, *, takes: bool) -> list[float]:
    """Microseconds of each step."""
    codec: Codec[ToServer] = Codec(ToServer)
    to_tokenizer: FrameQueue[FromServer] = FrameQueue(ToTokenizer)
    client = Client(to_tokenizer)
    consumers = Consumers(client, load.num_requests, takes=takes)
    await asyncio.sleep(0)
    frames = [codec.encode(message) for message in text_outputs(load)]
    settle()
    step_us = []
    profiler = cProfile.Profile() if load.profile else None
    for number, frame in enumerate(frames, start=1):
        if profiler is not None:
            profiler.enable()
        started = time.thread_time()
        client.handle(codec.decode(frame))
        await consumers.wait_for(number * load.num_requests)
        step_us.append((time.thread_time() - started) * 1e6)
        if profiler is not None:
            profiler.disable()
    consumers.cancel()
    if profiler is not None:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(30)
    return step_us


def bench_client(load: Load) -> Iterator[Figure]:
    for takes, case in ((False, "one by one, as whole answers"), (True, "take(), as streams")):
        yield Figure("client", case, load.num_requests, asyncio.run(run_client(load, takes=takes)))


# ---- link


@dataclass(frozen=True)
class LinkEndpoints:
    scheduler: str
    tokenizer: str
    worker: str
    server: str


def _scheduler_main(config: SchedulerConfig, at: LinkEndpoints) -> None:
    context = zmq.Context(1)
    inbox: ZmqInbox[Any] = ZmqInbox(context, at.scheduler, ToScheduler)
    to_worker: ZmqOutbox[Any] = ZmqOutbox(context, at.worker, ToWorker)
    to_tokenizer: ZmqOutbox[Any] = ZmqOutbox(context, at.tokenizer, ToTokenizer)
    scheduler_process.run(config, inbox, to_worker, to_tokenizer, lambda: False)


def _tokenizer_main(config: TokenizerConfig, at: LinkEndpoints) -> None:
    context = zmq.Context(1)
    inbox: ZmqInbox[Any] = ZmqInbox(context, at.tokenizer, ToTokenizer)
    to_scheduler: ZmqOutbox[Any] = ZmqOutbox(context, at.scheduler, ToScheduler)
    to_server: ZmqOutbox[Any] = ZmqOutbox(context, at.server, ToServer)
    tokenizer_process.run(config, inbox, to_scheduler, to_server, lambda: False)


class LinkBench:
    """The worker's and the server's ends of a scheduler and a tokenizer process."""

    def __init__(self, load: Load, at: LinkEndpoints) -> None:
        context = zmq.Context(1)
        self._load = load
        self._plans: ZmqInbox[Plan] = ZmqInbox(context, at.worker, ToWorker)
        self._texts: ZmqInbox[ToServer] = ZmqInbox(context, at.server, ToServer)
        self._to_scheduler: ZmqOutbox[Any] = ZmqOutbox(context, at.scheduler, ToScheduler)
        self._to_tokenizer: ZmqOutbox[Any] = ZmqOutbox(context, at.tokenizer, ToTokenizer)
        self._worker = MadeUpWorker(load.num_tokens)
        self._is_ready = False
        self._arrival_s: list[float] = []  # of TextOutputs, from a thread of its own
        threading.Thread(target=self._read_texts, daemon=True).start()

    def run(self) -> tuple[list[float], list[float]]:
        """Microseconds from a result to the plan after the next one, and to its text."""
        num_steps = self._load.num_steps
        self._to_scheduler.put(WorkerReady(self._load.num_requests * 500, {}))
        self._wait_until(lambda: self._is_ready)
        for i in range(self._load.num_requests):
            prompt = TokenPrompt([1000 + i] * PROMPT_LEN)
            self._to_tokenizer.put(Generate(rid(i), prompt, SamplingParams(30_000, i), ignore_eos=True))
        plans: deque[Plan] = deque()
        num_decode = 0
        while num_decode < self._load.num_requests:  # until all decode
            plan = self._next_plan(plans)
            num_decode = len(plan.decode)
            self._to_scheduler.put(self._worker.step(plan))
        time.sleep(0.2)
        plan_us, text_us = [], []
        for _ in range(num_steps):
            while len(plans) < 2:
                plans.extend(self._receive())
            self._arrival_s.clear()
            result = self._worker.step(plans.popleft())
            started = time.perf_counter()
            self._to_scheduler.put(result)
            plans.extend(self._receive())
            plan_us.append((time.perf_counter() - started) * 1e6)
            self._wait_until(lambda: bool(self._arrival_s))
            text_us.append((self._arrival_s[0] - started) * 1e6)
            time.sleep(0.003)
        return plan_us, text_us

    def _next_plan(self, plans: deque[Plan]) -> Plan:
        if not plans:
            plans.extend(self._receive())
        return plans.popleft()

    def _receive(self) -> list[Plan]:
        while not self._plans.wait(5.0):
            pass
        return self._plans.drain()

    def _read_texts(self) -> None:
        while True:
            self._texts.wait(5.0)
            now = time.perf_counter()
            for message in self._texts.drain():
                self._is_ready = self._is_ready or isinstance(message, SchedulerReady)
                if isinstance(message, TextOutputs):
                    self._arrival_s.append(now)

    @staticmethod
    def _wait_until(condition: Callable[[], bool]) -> None:
        while not condition():
            time.sleep(0.0002)


def bench_link(load: Load) -> Iterator[Figure]:
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        at = LinkEndpoints(*(f"ipc://{folder}/{name}" for name in ("scheduler", "tokenizer", "worker", "server")))
        children = [
            spawn.Process(target=_scheduler_main, args=(scheduler_config(load.num_tokens), at)),
            spawn.Process(target=_tokenizer_main, args=(tokenizer_config(LARGE), at)),
        ]
        for child in children:
            child.start()
        try:
            plan_us, text_us = LinkBench(load, at).run()
        finally:
            for child in children:
                child.terminate()
                child.join()
    yield Figure("link", "result -> next plan", load.num_requests, plan_us)
    yield Figure("link", "result -> text at the server's socket", load.num_requests, text_us)


# ---- the program


def run_part(part: str, load: Load) -> Iterator[Figure]:
    benches = {
        "scheduler": bench_scheduler,
        "prefill": bench_prefill,
        "tokenizer": bench_tokenizer,
        "client": bench_client,
        "link": bench_link,
    }
    return benches[part](load)


def show(figures: Sequence[Figure]) -> None:
    table = Table("part", "case", "requests", "us per step", "99 %", "goal")
    for figure in figures:
        goal = "" if figure.goal is None else f"<= {figure.goal:.0f}"
        table.add_row(
            figure.part, figure.case, str(figure.num_requests), f"{figure.median:.0f}", f"{figure.p99:.0f}", goal
        )
    Console().print(table)


def to_result(figure: Figure) -> results.Result:
    return results.Result(
        date=results.today(),
        commit=results.current_commit(REPOSITORY),
        machine=results.this_machine(),
        command=results.command_line("bench/host_path.py", sys.argv[1:]),
        case=f"{figure.part}, {figure.num_requests} requests: {figure.case}",
        value=round(figure.median, 1),
        unit="us",
        target=None if figure.goal is None else f"<= {figure.goal:.0f}",
        details={"p99": round(figure.p99, 1), "steps": len(figure.step_us)},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--requests", nargs="+", type=int, default=[1, 64, 256])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=3, help="of one request in one step")
    parser.add_argument("--profile", action="store_true", help="show where the time goes, which slows it down")
    parser.add_argument("--record", type=Path, help="add the figures to this file of JSON lines")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    for part in arguments.parts:
        for num_requests in arguments.requests:
            if part == "prefill" and num_requests == 1:
                continue
            load = Load(num_requests, arguments.steps, arguments.tokens, arguments.profile)
            figures.extend(run_part(part, load))
    show(figures)
    if arguments.record is not None:
        results.append(arguments.record, [to_result(figure) for figure in figures])


if __name__ == "__main__":
    main()
