"""Time Slipstream and transformers' generate on the same checkpoint in one run on a CPU.

    python scripts/compare_transformers.py

Same weights, dtype, cores, prompts and output lengths; greedy; fresh random prompts for each run; runs alternate, so
that a change of the machine's mood meets both; the best of the runs counts. Slipstream's worker uses one thread for
small steps and one per core for large ones; so transformers runs with one thread as well as with one per core, and its
better time counts. First, in fp32, both must answer every prompt with the same tokens. Appends to
bench/results/compare_transformers.jsonl.
"""

import argparse
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import MistralForCausalLM
from transformers.utils import logging

from native_to_hf import convert
from slipstream import Engine, __version__
from slipstream.bench import results
from slipstream.bench.one_batch import time_batch
from slipstream.bench.workload import ordinary_token_ids, random_prompts
from slipstream.config.options import LaunchOptions
from slipstream.launch.prepare import prepare
from slipstream.tokenizer.process import load_tokenizer
from slipstream.worker.threads import usable_cores

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "bench" / "results" / "compare_transformers.jsonl"
NUM_CHECKED_PROMPTS = 8
CHECKED_OUTPUT_LEN = 48
PAD_ID = 0  # any id: masked out

Prompts = list[list[int]]
HfModel = Any  # a MistralForCausalLM; the types of its generate() do not check


@dataclass(frozen=True)
class Case:
    """One comparison: what the other side does with the same prompts, and the ratio that Slipstream must reach."""

    name: str
    num_requests: int
    other: str
    run_other: Callable[[HfModel, Prompts, int], None]
    target: float | None


@dataclass(frozen=True)
class Times:
    """Seconds of every run; of transformers, by number of threads."""

    ours_s: list[float]
    others_s: dict[int, list[float]]

    @property
    def best_other(self) -> tuple[float, int]:
        """(seconds, threads) of transformers' best run."""
        return min((min(runs_s), num_threads) for num_threads, runs_s in self.others_s.items())

    @property
    def ratio(self) -> float:
        """How many times faster Slipstream's best run is."""
        return self.best_other[0] / min(self.ours_s)


# ---- the transformers side


def generate(model: HfModel, prompts: Prompts, output_len: int) -> list[list[int]]:
    """Greedy tokens for prompts in one batch, padded on the left; every answer has `output_len` tokens."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD_ID] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        output = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=output_len, min_new_tokens=output_len,
            pad_token_id=PAD_ID, eos_token_id=None,
        )  # fmt: skip
    answers: list[list[int]] = output[:, longest:].tolist()
    assert all(len(answer) == output_len for answer in answers)
    return answers


def one_by_one(model: HfModel, prompts: Prompts, output_len: int) -> None:
    for prompt in prompts:
        generate(model, [prompt], output_len)


def in_one_batch(model: HfModel, prompts: Prompts, output_len: int) -> None:
    generate(model, prompts, output_len)


def load_transformers(folder: Path, dtype: str) -> HfModel:
    model: HfModel = MistralForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True)
    model.generation_config.eos_token_id = None  # every answer has its full length, as with ignore_eos
    return model.eval()


CASES = (
    Case("1 request", 1, "transformers generate", one_by_one, 1.2),
    Case("16 requests at once", 16, "transformers generate, one by one", one_by_one, 4.0),
    Case(
        "16 requests at once, against a batch", 16, "transformers generate, one padded batch of 16", in_one_batch, None
    ),
)


# ---- both


def check_same_tokens(engine: Engine, model: HfModel, prompts: Prompts) -> None:
    """Exit with an error when the two differ: then their times mean nothing."""
    params = {"max_new_tokens": CHECKED_OUTPUT_LEN, "temperature": 0, "ignore_eos": True}
    ours = [answer.token_ids for answer in engine.generate(prompts, params)]
    for index, prompt in enumerate(prompts):
        theirs = generate(model, [prompt], CHECKED_OUTPUT_LEN)[0]
        if ours[index] != theirs:
            first = next(i for i, pair in enumerate(zip(ours[index], theirs, strict=True)) if pair[0] != pair[1])
            sys.exit(f"prompt {index}: greedy tokens differ from token {first} on; nothing was timed")


def mixed_prompts(rng: random.Random, token_ids: Sequence[int], num: int, input_len: int) -> Prompts:
    """Prompts of different lengths, from half of `input_len` to all of it, the longest first."""
    lengths = [input_len - index * (input_len // 2) // max(1, num - 1) for index in range(num)]
    return [random_prompts(rng, token_ids, 1, length)[0] for length in lengths]


def measure(
    case: Case,
    engine: Engine,
    model: HfModel,
    make_prompts: Callable[[int], Prompts],
    options: argparse.Namespace,
) -> Times:
    """Warm up both, then alternate."""
    times = Times([], {num_threads: [] for num_threads in sorted({1, options.threads})})
    time_batch(engine, make_prompts(case.num_requests), 4)
    case.run_other(model, make_prompts(case.num_requests), 4)
    for _ in range(options.runs):
        prompts = make_prompts(case.num_requests)
        times.ours_s.append(time_batch(engine, prompts, options.output_len))
        for num_threads, runs_s in times.others_s.items():
            torch.set_num_threads(num_threads)  # each time: a worker in this process sets it too
            started_s = time.perf_counter()
            case.run_other(model, prompts, options.output_len)
            runs_s.append(time.perf_counter() - started_s)
    return times


def use_cores(num_threads: int) -> None:
    """Keep this process and all its children, so both sides, to the same cores, with one thread of torch on each."""
    available = sorted(os.sched_getaffinity(0))
    if num_threads > len(available):
        sys.exit(f"--threads is {num_threads}; there are {len(available)} cores")
    os.sched_setaffinity(0, available[:num_threads])
    if usable_cores() != num_threads:
        sys.exit(
            f"--threads {num_threads}: the first {num_threads} processors share cores; use --threads {usable_cores()}"
        )
    torch.set_num_threads(num_threads)  # Slipstream's worker counts the same cores for itself


def parse(args: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time Slipstream and transformers on the same checkpoint, on a CPU.")
    parser.add_argument(
        "--model-path", help="a Mistral-native dense checkpoint; none: the one that ships with Slipstream"
    )
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"), help="of both sides")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="cores for each side")
    parser.add_argument("--input-len", type=int, default=128, help="tokens of the longest prompt")
    parser.add_argument("--output-len", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--runs", type=int, default=3, help="runs of each side; the best counts")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--in-process", action="store_true", help="measure the Engine in one process as well")
    parser.add_argument("--no-record", action="store_true", help="print only; leave bench/results alone")
    return parser.parse_args(args)


def main(args: Sequence[str]) -> int:
    """Returns 1 when a target is missed."""
    options = parse(args)
    use_cores(options.threads)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    prepared = prepare(LaunchOptions(model_path=options.model_path, device="cpu", dtype=options.dtype))
    spec, resolved = prepared.spec, prepared.resolved
    token_ids = ordinary_token_ids(load_tokenizer(resolved.tokenizer))
    dtype = resolved.worker.dtype
    rng = random.Random(options.seed)

    def make_prompts(num: int) -> Prompts:
        return mixed_prompts(rng, token_ids, num, options.input_len)

    def start(dtype: str, *, in_process: bool) -> Engine:
        return Engine(options.model_path, in_process=in_process, device="cpu", dtype=dtype, log_level="warning")

    measured: dict[tuple[Case, bool], Times] = {}
    with tempfile.TemporaryDirectory() as folder:
        convert(Path(spec.path), Path(folder))
        with start("float32", in_process=False) as engine:
            check_same_tokens(engine, load_transformers(Path(folder), "float32"), make_prompts(NUM_CHECKED_PROMPTS))
        print(f"fp32: {NUM_CHECKED_PROMPTS} prompts x {CHECKED_OUTPUT_LEN} greedy tokens are equal", flush=True)
        model = load_transformers(Path(folder), dtype)
        for in_process in (False, True) if options.in_process else (False,):
            with start(dtype, in_process=in_process) as engine:
                for case in CASES:
                    times = measure(case, engine, model, make_prompts, options)
                    measured[case, in_process] = times
                    print(f"{case.name}, {form(in_process)}: {times.ratio:.2f} times {case.other}", flush=True)
    show(measured, options.output_len)
    rows = to_results(measured, options, dtype, results.command_line("scripts/compare_transformers.py", args))
    if not options.no_record:
        results.append(RESULTS, rows)
    return 1 if any(results.meets(row.value, row.target) is False for row in rows) else 0


def rates(case: Case, output_len: int, times: Times) -> tuple[float, float]:
    """Generated tokens per second of the best run of Slipstream and of transformers."""
    num_tokens = case.num_requests * output_len
    return num_tokens / min(times.ours_s), num_tokens / times.best_other[0]


def threads(times: Times) -> str:
    """How many threads transformers' best run had."""
    num = times.best_other[1]
    return "1 thread" if num == 1 else f"{num} threads"


def show(measured: dict[tuple[Case, bool], Times], output_len: int) -> None:
    table = Table("case", "Slipstream runs as", "tok/s", "against", "tok/s", "ratio", "target")
    for (case, in_process), times in measured.items():
        ours, others = rates(case, output_len, times)
        table.add_row(
            case.name, form(in_process), f"{ours:.1f}", f"{case.other} ({threads(times)})",
            f"{others:.1f}", f"{times.ratio:.2f}",
            f">= {case.target}" if case.target and not in_process else "",
        )  # fmt: skip
    Console().print(table)


def form(in_process: bool) -> str:
    return "one process" if in_process else "processes, as served"


def to_results(
    measured: dict[tuple[Case, bool], Times], options: argparse.Namespace, dtype: str, command: str
) -> list[results.Result]:
    """One result for each case and form. Targets are for the form that is served."""
    commit, machine, today = results.current_commit(REPOSITORY), results.this_machine(), results.today()
    versions: dict[str, Any] = {
        "slipstream": __version__, "transformers": transformers.__version__, "torch": str(torch.__version__),
        "python": platform.python_version(),
    }  # fmt: skip
    setting = f"{dtype}, {options.threads} cores, in {options.input_len}, out {options.output_len}"
    rows = []
    for (case, in_process), times in measured.items():
        ours, others = rates(case, options.output_len, times)
        peer = f"transformers {transformers.__version__} with {threads(times)}"
        rows.append(results.Result(
            date=today, commit=commit, machine=machine, command=command,
            case=f"{case.name}, {form(in_process)}: tokens/s over {case.other} ({setting})",
            value=round(times.ratio, 3), unit="x",
            compared_with=f"{peer}: {others:.1f} tok/s, Slipstream: {ours:.1f}",
            target=f">= {case.target}" if case.target is not None and not in_process else None,
            details={"versions": versions, "ours_s": times.ours_s, "others_s": times.others_s},
        ))  # fmt: skip
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
