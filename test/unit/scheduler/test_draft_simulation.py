"""The draft controller on simulated machines and traffic, compared with every fixed depth and with no draft at all.

The simulated server keeps two plans in flight, so that the controller sees a step only after it has planned two more,
and finished sequences still ride along in them. Its times are measured ones of a CPU, or nearly flat ones.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from slipstream.config.drafting import DraftShape
from slipstream.scheduler.draft_controller import DraftController, ObservedStep

Cost = Callable[[int, int, int], float]  # seconds by decode rows, warm slots, depth
Acceptance = Callable[[float, int], float]  # probability by time and number of the request
LAG = 2  # steps in flight


def cpu_cost(num_decode: int, num_warm: int, depth: int) -> float:
    """Near the measured: 5.7 / 7.3 / 8.1 / 8.9 ms at batch 1 without drafts and at 1, 2, 3; 13 / 14.5 / 28 ms at 16."""
    cost = 5.2 + 0.49 * num_decode
    if num_warm:
        cost += 0.3 + 0.075 * num_warm
        cost += (0.6 + depth * (0.55 + 0.235 * num_warm)) if depth else 0.0
    return cost / 1000


def gpu_cost(num_decode: int, num_warm: int, depth: int) -> float:
    cost = 6.0 + 0.02 * num_decode
    if num_warm:
        cost += 0.15 + ((0.3 + depth * (0.35 + 0.005 * num_warm)) if depth else 0.0)
    return cost / 1000


def ngram_cost(num_decode: int, num_warm: int, depth: int) -> float:
    """Of drafts without KV: nothing to re-feed."""
    return cpu_cost(num_decode, num_warm if depth else 0, depth)


@dataclass
class Stream:
    number: int
    length: int
    is_warm: bool
    probability: float
    num_prompt_steps: int
    num_tokens: int = 0

    @property
    def is_done(self) -> bool:
        return self.num_tokens >= self.length


@dataclass
class Run:
    """What happened: time at the end of each step, its tokens, depth, and slots that decoded and were warm."""

    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    num_decode: list[int] = field(default_factory=list)
    num_warm: list[int] = field(default_factory=list)

    def rate(self, start_s: float = 0.0, end_s: float = 1e9) -> float:
        """Tokens per second."""
        steps = [step for step, time in enumerate(self.times) if start_s <= time < end_s]
        return sum(self.tokens[step] for step in steps[1:]) / (self.times[steps[-1]] - self.times[steps[0]])

    def num_drafts(self, start_s: float) -> list[int]:
        steps = zip(self.times, self.depths, self.num_warm, strict=True)
        return [depth * num_warm for time, depth, num_warm in steps if time >= start_s]

    def decode_depths(self, start_s: float = 0.0) -> list[int]:
        steps = zip(self.times, self.depths, self.num_decode, strict=True)
        return [depth for time, depth, num_decode in steps if time >= start_s and num_decode]


@dataclass
class Server:
    """Closed-loop traffic: always `concurrency` streams, a new one for each that ends."""

    cost: Cost
    acceptance: Acceptance
    concurrency: Callable[[float], int]
    noise: float = 0.05  # log-normal
    outliers: float = 0.01  # of the steps, taking four times as long
    speed: Callable[[float], float] = lambda time: 1.0  # factor on all times
    lengths: tuple[int, int] = (20, 300)
    num_prompt_steps: int = 1
    keeps_probability: bool = False  # a stream keeps the acceptance that it was born with
    seed: int = 0

    def run(self, controller: DraftController | None, until_s: float) -> Run:
        """Serve until then; None: without a draft."""
        noise, rng = random.Random(self.seed), random.Random(self.seed + 1)
        run, time, number = Run(), 0.0, 0
        running: list[Stream] = []
        in_flight: deque[tuple[ObservedStep, list[Stream]]] = deque()
        while time < until_s:
            if len(in_flight) == LAG:
                observed, done = in_flight.popleft()
                running = [stream for stream in running if stream not in done]
                if controller:
                    controller.observe(observed)
            if controller and controller.goes_cold():
                for stream in running:
                    stream.is_warm = False
            decoding = [stream for stream in running if not stream.num_prompt_steps]
            num_warm = sum(stream.is_warm for stream in decoding)
            depth = controller.choose(len(decoding), num_warm) if controller and decoding else 0
            while len(running) < self.concurrency(time):
                length = random.Random(f"{self.seed} {number}").randint(*self.lengths)
                is_warm = controller is not None and controller.admits_warm()
                probability = self.acceptance(time, number)
                running.append(Stream(number, length, is_warm, probability, self.num_prompt_steps))
                number += 1
            outcomes, num_tokens = self._verify(decoding, depth, time, rng)
            num_prompt_tokens = 0
            for stream in running:
                if stream.num_prompt_steps:
                    stream.num_prompt_steps -= 1
                    num_prompt_tokens += 64
            step_s = self.cost(len(decoding), num_warm, depth) if decoding else 0.001
            step_s *= noise.lognormvariate(0, self.noise) * (4 if noise.random() < self.outliers else 1)
            step_s = step_s * self.speed(time) + 2e-5 * num_prompt_tokens
            time += step_s
            observed = ObservedStep(len(decoding), num_warm, depth, num_prompt_tokens, step_s, outcomes)
            in_flight.append((observed, [stream for stream in decoding if stream.is_done]))
            run.times.append(time)
            run.tokens.append(num_tokens)
            run.depths.append(depth)
            run.num_decode.append(len(decoding))
            run.num_warm.append(num_warm)
        return run

    def _verify(
        self, decoding: list[Stream], depth: int, time: float, rng: random.Random
    ) -> tuple[list[tuple[int, int]], int]:
        outcomes, num_tokens = [], 0
        for stream in decoding:
            if stream.is_done:
                continue
            accepted = 0
            if stream.is_warm and depth:
                now = stream.probability if self.keeps_probability else self.acceptance(time, stream.number)
                while accepted < depth and rng.random() < now:
                    accepted += 1
                outcomes.append((depth, accepted))
            kept = min(accepted + 1, stream.length - stream.num_tokens)
            stream.num_tokens += kept
            num_tokens += kept
        return outcomes, num_tokens


def chain(depth: int, adaptive: bool = True, has_kv: bool = True) -> DraftController:
    return DraftController(DraftShape(depth, 1, depth), adaptive, has_kv)


def constant(value: int) -> Callable[[float], int]:
    return lambda time: value


def best_fixed(server: Server, depth: int, until_s: float, has_kv: bool = True) -> float:
    """Tokens per second of the best of no draft and every fixed depth."""
    rates = [server.run(None, until_s).rate()]
    rates += [server.run(chain(fixed, False, has_kv), until_s).rate() for fixed in range(1, depth + 1)]
    return max(rates)


@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize(
    ("cost", "depth", "has_kv"), [(cpu_cost, 3, True), (gpu_cost, 5, True), (ngram_cost, 3, False)]
)
def test_without_acceptance_it_is_hardly_slower_than_no_draft(cost: Cost, depth: int, has_kv: bool, batch: int) -> None:
    until_s = 2000 * cost(batch, 0, 0)
    for seed in range(3):
        server = Server(cost, lambda time, number: 0.0, constant(batch), seed=seed)
        plain = server.run(None, until_s).rate()
        assert server.run(chain(depth, has_kv=has_kv), until_s).rate() > 0.975 * plain


@pytest.mark.parametrize("probability", [0.3, 0.6, 0.9])
@pytest.mark.parametrize(("cost", "depth", "batch"), [(cpu_cost, 3, 1), (cpu_cost, 3, 16), (gpu_cost, 5, 1)])
def test_it_is_as_fast_as_the_best_fixed_depth(cost: Cost, depth: int, batch: int, probability: float) -> None:
    until_s = 2000 * cost(batch, 0, 0)
    for seed in range(2):
        server = Server(cost, lambda time, number: probability, constant(batch), seed=seed)
        assert server.run(chain(depth), until_s).rate() > 0.96 * best_fixed(server, depth, until_s)


def test_at_batch_1_it_settles_within_a_few_dozen_steps_and_stays() -> None:
    for seed in range(4):
        run = Server(cpu_cost, lambda time, number: 0.9, constant(1), seed=seed).run(chain(3), 20.0)
        depths = run.decode_depths()[40:]
        assert sum(depth == 3 for depth in depths) > 0.96 * len(depths)
        num_changes = sum(one != other for one, other in pairwise(depths))
        assert num_changes < len(depths) / 60, "a look at another depth now and then, nothing else"


@pytest.mark.parametrize(("cost", "depth", "batch"), [(cpu_cost, 3, 16), (cpu_cost, 3, 1), (gpu_cost, 5, 16)])
def test_drafting_ends_when_acceptance_does_and_returns_with_it(cost: Cost, depth: int, batch: int) -> None:
    for seed in range(4):
        server = Server(cost, lambda time, number: 0.0 if 5 < time < 15 else 0.9, constant(batch), seed=seed)
        run, plain = server.run(chain(depth), 25.0), server.run(None, 25.0)
        best = Server(cost, lambda time, number: 0.9, constant(batch), seed=seed).run(chain(depth, False), 10.0)
        assert run.rate(2.0, 5.0) > 0.95 * best.rate(2.0, 5.0)
        assert sum(run.num_drafts(6.1)[:100]) < 0.1 * 100 * depth * batch, "down within 1.1 s"
        assert run.rate(5.7, 15.0) > 0.97 * plain.rate(5.7, 15.0)
        assert run.rate(18.0, 20.0) > 0.75 * best.rate(2.0), "running cold sequences have to end first"
        assert run.rate(20.0) > 0.95 * best.rate(2.0)


def test_a_scout_turns_the_tide_within_a_hundred_and_odd_steps() -> None:
    waits = []
    for seed in range(8):
        acceptance: Acceptance = lambda time, number: 0.0 if time < 8 else 0.9  # noqa: E731
        run = Server(cpu_cost, acceptance, constant(16), seed=seed).run(chain(3), 13.0)
        back = next(step for step, time in enumerate(run.times) if time > 8)
        waits.append(next(step for step in range(back, len(run.times)) if run.num_warm[step] > 1) - back)
    assert sum(waits) / len(waits) < 100
    assert max(waits) < 180


@pytest.mark.parametrize(("batch", "least"), [(1, 0.98), (4, 0.96), (16, 0.96)])
def test_good_and_hopeless_requests_in_turn_are_not_served_slower_than_without_drafts(batch: int, least: float) -> None:
    """The mixture is about at the break-even point, where nothing is to be had."""
    server = Server(
        cpu_cost, lambda time, number: 0.9 * (number % 2), constant(batch), lengths=(80, 120), keeps_probability=True
    )
    assert server.run(chain(3), 25.0).rate() > least * server.run(None, 25.0).rate()


@pytest.mark.parametrize("cost", [cpu_cost, gpu_cost])
def test_a_batch_that_swells_and_shrinks(cost: Cost) -> None:
    server = Server(cost, lambda time, number: 0.7, lambda time: 1 + int(23 * abs((time % 6) / 3 - 1)))
    assert server.run(chain(4), 24.0).rate() > 0.97 * best_fixed(server, 4, 24.0)


@pytest.mark.parametrize("batch", [1, 16])
def test_a_noisy_machine_that_slows_down_now_and_then(batch: int) -> None:
    for probability, least in ((0.0, 0.97), (0.9, 0.93)):
        server = Server(
            cpu_cost,
            lambda time, number, probability=probability: probability,  # type: ignore[misc]
            constant(batch),
            noise=0.1,
            outliers=0.03,
            speed=lambda time: 1.6 if time % 9 < 3 else 1.0,
        )
        assert server.run(chain(3), 30.0).rate() > least * best_fixed(server, 3, 30.0)


@pytest.mark.parametrize("probability", [0.0, 0.9])
def test_prompts_beside_nearly_every_step(probability: float) -> None:
    server = Server(cpu_cost, lambda time, number: probability, constant(16), num_prompt_steps=15)
    assert server.run(chain(3), 25.0).rate() > 0.97 * best_fixed(server, 3, 25.0)


def test_the_same_steps_give_the_same_decisions() -> None:
    server = Server(cpu_cost, lambda time, number: 0.5, constant(4))
    assert server.run(chain(3), 4.0) == server.run(chain(3), 4.0)
