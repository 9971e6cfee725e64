"""The draft controller against simulated machines and traffic, compared with every fixed depth on the same machine.

The simulated server keeps two plans in flight, so that the controller sees a step only after it has planned two more
and finished sequences still ride along in them.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from slipstream.scheduler.draft_controller import DraftController, ObservedStep

Cost = Callable[[int, int, int], float]  # seconds by decode rows, warm slots, depth
Acceptance = Callable[[float, int], float]  # probability by time and number of the request
LAG = 2


def cpu_cost(num_decode: int, num_warm: int, depth: int) -> float:
    """Near the measured: 5.7 / 7.5 / 8.3 / 9.1 ms at batch 1 without drafts and at 1, 2, 3; 13 / 14.5 / 28 ms at 16."""
    cost = 5.2 + 0.49 * num_decode
    if num_warm:
        cost += 0.3 + 0.075 * num_warm
        cost += (0.6 + depth * (0.55 + 0.235 * num_warm)) if depth else 0.0
    return cost / 1000


def gpu_cost(num_decode: int, num_warm: int, depth: int) -> float:
    """Nearly flat."""
    cost = 6.0 + 0.02 * num_decode
    if num_warm:
        cost += 0.15 + ((0.3 + depth * (0.35 + 0.005 * num_warm)) if depth else 0.0)
    return cost / 1000


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
    """What a simulation served: seconds, tokens and depth at the end of every step."""

    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    num_warm: list[int] = field(default_factory=list)
    num_decode: list[int] = field(default_factory=list)

    def rate(self, start_s: float = 0.0, end_s: float = 1e9) -> float:
        steps = [index for index, time in enumerate(self.times) if start_s <= time < end_s]
        return sum(self.tokens[index] for index in steps[1:]) / (self.times[steps[-1]] - self.times[steps[0]])

    def num_switches(self, start: int = 0) -> int:
        return sum(a != b for a, b in zip(self.depths[start:], self.depths[start + 1 :], strict=False))


@dataclass
class Server:
    """Closed-loop traffic: `concurrency(time)` streams at any time, a new one for each that ends."""

    cost: Cost
    acceptance: Acceptance
    concurrency: Callable[[float], int]
    controller: DraftController | None  # None: a server without a draft
    has_kv: bool = True
    noise: float = 0.05
    speed: Callable[[float], float] = lambda time: 1.0  # factor on all step times, by time
    outliers: float = 0.01
    lengths: tuple[int, int] = (20, 300)
    per_request: bool = False  # a stream keeps the acceptance that it was born with
    prompt_steps: int = 1
    seed: int = 0

    def run(self, num_steps: int = 10**9, until_s: float = 1e9) -> Run:
        noise, rng = random.Random(self.seed), random.Random(self.seed + 1)
        run = Run()
        running: list[Stream] = []
        in_flight: deque[tuple[ObservedStep, list[Stream]]] = deque()
        time, number = 0.0, 0
        while len(run.times) < num_steps and time < until_s:
            if len(in_flight) == LAG:
                observed, finished = in_flight.popleft()
                running = [stream for stream in running if stream not in finished]
                if self.controller:
                    self.controller.observe(observed)
            decoding = [stream for stream in running if not stream.num_prompt_steps]
            num_warm = sum(stream.is_warm for stream in decoding)
            depth = self.controller.choose(len(decoding), num_warm) if self.controller else 0
            if self.controller and self.controller.goes_cold():
                for stream in running:
                    stream.is_warm = False
                depth, num_warm = 0, 0
            prefilling = [stream for stream in running if stream.num_prompt_steps]
            while len(running) < self.concurrency(time):
                length = random.Random((self.seed, number).__repr__()).randint(*self.lengths)
                warm = self.controller is not None and (self.controller.admits_warm() or not self.has_kv)
                born = Stream(number, length, warm, self.acceptance(time, number), self.prompt_steps)
                running.append(born)
                prefilling.append(born)
                number += 1
            outcomes, num_tokens = [], 0
            for stream in decoding:
                if stream.is_done:
                    continue
                accepted = 0
                if stream.is_warm and depth:
                    probability = stream.probability if self.per_request else self.acceptance(time, stream.number)
                    while accepted < depth and rng.random() < probability:
                        accepted += 1
                    outcomes.append((depth, accepted))
                kept = min(accepted + 1, stream.length - stream.num_tokens)
                stream.num_tokens += kept
                num_tokens += kept
            for stream in prefilling:
                stream.num_prompt_steps -= 1
            step_s = self.cost(len(decoding), num_warm, depth) if decoding else 0.001
            step_s *= noise.lognormvariate(0, self.noise) * (4 if noise.random() < self.outliers else 1)
            step_s *= self.speed(time)
            num_prompt_tokens = 64 * len(prefilling)
            step_s += 0.00002 * num_prompt_tokens
            time += step_s
            in_flight.append(
                (
                    ObservedStep(len(decoding), num_warm, depth, num_prompt_tokens, step_s, outcomes),
                    [stream for stream in decoding if stream.is_done],
                )
            )
            run.times.append(time)
            run.tokens.append(num_tokens)
            run.depths.append(depth)
            run.num_warm.append(num_warm)
            run.num_decode.append(len(decoding))
        return run
