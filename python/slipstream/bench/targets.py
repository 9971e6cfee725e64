"""What is to be reached on an H200: for each case the figures of two public engines, as measured, and our target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from slipstream.bench.one_batch import Shape

Figure = Literal["tpot_ms", "prefill_tok_s", "ttft_ms"]
UNITS: Mapping[Figure, str] = {"tpot_ms": "ms", "prefill_tok_s": "tokens/s", "ttft_ms": "ms"}
VLLM, SGLANG = "vLLM 0.24.0", "SGLang 0.5.15"
NUM_DRAFTS = 3  # K of the rows with a draft


@dataclass(frozen=True)
class Target:
    """One figure of one shape. `goal` and `stretch` are like "<= 3.6", in the figure's unit.

    With an `acceptance_length` there is a draft, K is NUM_DRAFTS and this acceptance is simulated.
    """

    preset: str
    figure: Figure
    shape: Shape
    goal: str
    vllm: float | None = None
    sglang: float | None = None
    stretch: str | None = None
    acceptance_length: float | None = None
    num_gpus: int = 1
    remark: str = ""  # on the peers' figures

    @property
    def peers(self) -> dict[str, float]:
        """The engines that were measured in this case, the faster one first."""
        known = [(name, value) for name, value in ((VLLM, self.vllm), (SGLANG, self.sglang)) if value is not None]
        return dict(sorted(known, key=lambda peer: peer[1], reverse=self.more_is_better))

    @property
    def more_is_better(self) -> bool:
        return self.goal.startswith(">=")

    @property
    def case(self) -> str:
        """See case_name().

        >>> TARGETS[0].case, TARGETS[7].case
        ('7b, bs 1, in 128, out 257: time per token', '7b, prefill 8 x 8192: tokens per second')
        """
        return case_name(self.preset, self.figure, self.shape, self.acceptance_length, self.num_gpus)


def case_name(
    model: str, figure: Figure, shape: Shape, acceptance_length: float | None = None, num_gpus: int = 1
) -> str:
    """A case in words that stay the same: lines of results, and the notes about them, are found by these."""
    with_draft = f" + EAGLE, acceptance length {acceptance_length:g}" if acceptance_length is not None else ""
    head = f"{model}{with_draft}{f' on {num_gpus} GPUs' if num_gpus > 1 else ''}"
    if figure == "prefill_tok_s":
        return f"{head}, prefill {shape.batch_size} x {shape.input_len}: tokens per second"
    if figure == "ttft_ms":
        return f"{head}, prompt of {shape.batch_size} x {shape.input_len}: time to first token"
    return f"{head}, bs {shape.batch_size}, in {shape.input_len}, out {shape.output_len}: time per token"


BS_1, BS_8, BS_64, BS_256 = Shape(1, 128, 257), Shape(8, 512, 257), Shape(64, 512, 257), Shape(256, 512, 129)
LONG, MIDDLE, SHORT = Shape(8, 8192, 1), Shape(1, 4096, 1), Shape(1, 128, 1)

PUBLISHED = "SGLang's is published"
SHORTER = f"{PUBLISHED}, at an acceptance length of 1.72"

TARGETS: tuple[Target, ...] = (
    Target("7b", "tpot_ms", BS_1, "<= 3.6", 4.70, 4.60),
    Target("7b", "tpot_ms", BS_8, "<= 4.0", None, 4.91),
    Target("7b", "tpot_ms", BS_64, "<= 5.6", 6.55, 6.57),
    Target("7b", "tpot_ms", BS_256, "<= 12.0", 13.2, 13.7),
    Target("7b", "tpot_ms", BS_1, "<= 1.55", 1.87, 1.99, "<= 1.45", acceptance_length=3.0),
    Target("7b", "tpot_ms", BS_8, "<= 1.65", 2.01, 2.11, acceptance_length=3.0),
    Target("7b", "tpot_ms", BS_64, "<= 2.9", 3.44, 3.58, acceptance_length=3.0),
    Target("7b", "prefill_tok_s", LONG, ">= 39500", 38600, 37700, ">= 41000"),
    Target("7b", "prefill_tok_s", MIDDLE, ">= 40000", 39300, None, ">= 42000"),
    Target("7b", "ttft_ms", SHORT, "<= 7", 9.3, 11.4),
    Target("24b", "tpot_ms", BS_1, "<= 11.4", 12.4, 12.5),
    Target("24b", "tpot_ms", BS_64, "<= 14", 15.5, 15.9),
    Target("24b", "prefill_tok_s", MIDDLE, ">= 14000", 13800, 13200),
    Target("128b-fp8", "tpot_ms", BS_1, "<= 9.5", 12.8, 14.2, num_gpus=4, remark=PUBLISHED),
    Target("128b-fp8", "tpot_ms", BS_64, "<= 14.5", 17.0, None, num_gpus=4),
    Target("128b-fp8", "tpot_ms", BS_1, "<= 4.4", 5.75, 9.73, acceptance_length=2.5, num_gpus=4, remark=SHORTER),
    Target("128b-fp8", "tpot_ms", BS_64, "<= 10.5", 12.6, None, acceptance_length=2.5, num_gpus=4),
)

# Seconds from the start of the process until a 7b preset with random weights is ready.
START_GOAL, START_PEERS = "<= 15", {VLLM: 36.0, SGLANG: 65.0}
START_PRESET = "7b"

CASE_SETS: Mapping[str, frozenset[Figure]] = {
    "targets": frozenset({"tpot_ms", "prefill_tok_s", "ttft_ms"}),
    "decode": frozenset({"tpot_ms"}),
    "prefill": frozenset({"prefill_tok_s", "ttft_ms"}),
}


def shapes_of(preset: str, *, has_draft: bool, cases: str) -> list[Shape]:
    """The shapes of a set of CASE_SETS for a preset, with or without a draft, in order."""
    return [
        target.shape
        for target in TARGETS
        if target.preset == preset
        and (target.acceptance_length is not None) == has_draft
        and target.figure in CASE_SETS[cases]
    ]


def find_targets(
    preset: str | None, shape: Shape, *, acceptance_length: float | None, num_drafts: int, num_gpus: int
) -> Sequence[Target]:
    """The targets that a measurement is about. `acceptance_length` is the simulated one, None without a draft."""
    return [
        target
        for target in TARGETS
        if (target.preset, target.shape, target.num_gpus) == (preset, shape, num_gpus)
        and target.acceptance_length == acceptance_length
        and (target.acceptance_length is None or num_drafts == NUM_DRAFTS)
    ]
