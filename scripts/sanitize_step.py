"""A few steps of a tiny bf16 model with drafts in one process, for NVIDIA's sanitizer, which makes them slow:

    compute-sanitizer --tool memcheck --error-exitcode 1 python scripts/sanitize_step.py --graphs
    compute-sanitizer --tool memcheck --error-exitcode 1 python scripts/sanitize_step.py --no-graphs

torch's allocator hides accesses beyond a tensor that still lie in its block of memory. With --no-graphs,
PYTORCH_NO_CUDA_MEMORY_CACHING=1 gives each tensor memory of its own; graphs need the allocator's.
"""

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path

import torch

from slipstream.bench.presets import Preset, write_preset
from slipstream.config.drafting import DraftShape
from slipstream.config.processes import WorkerConfig, WorkerDrafts
from slipstream.hf_transformers.inspect import inspect_checkpoint, inspect_draft
from slipstream.messages.sampling import SamplingParams
from slipstream.messages.to_worker import NewRequest, Plan, PrefillChunk
from slipstream.worker.build import build_worker
from slipstream.worker.worker import Worker

TINY = Preset(
    {
        "dim": 256, "n_layers": 2, "head_dim": 64, "hidden_dim": 512, "n_heads": 8, "n_kv_heads": 2,
        "norm_eps": 1e-5, "rope_theta": 1e4, "vocab_size": 3072, "max_position_embeddings": 1024,
    },
    draft_layers=1,
)  # fmt: skip
DEPTH = 2
PAGE_SIZE = 16
PAGES_EACH = 20
NUM_SLOTS = 4
GRAPH_BATCH = 2  # larger batches have no graph
CHUNK = 64  # the largest prefill that has a graph
SAMPLINGS = (
    SamplingParams(max_new_tokens=64, seed=0, temperature=0.0),
    SamplingParams(max_new_tokens=64, seed=1, temperature=0.8, top_k=40, top_p=0.9, min_p=0.01),
    SamplingParams(max_new_tokens=64, seed=2, temperature=1.0, top_p=0.5),
)
LENGTHS = (21, 16, 25)


def load(folder: Path, *, graphs: bool, device: str, backend: str) -> Worker:
    folders = write_preset(TINY, folder, "tiny")
    drafts = WorkerDrafts("EAGLE", DraftShape(DEPTH, 1, DEPTH), 2, model_path=str(folders.draft), load_format="dummy")
    config = WorkerConfig(
        model_path=str(folders.target),
        config_format="auto",
        load_format="dummy",
        tokenizer_path=None,
        dtype="bfloat16",
        device=device,
        attention_backend=backend,
        mem_fraction_static=0.5,
        context_length=PAGES_EACH * PAGE_SIZE,
        max_running_requests=NUM_SLOTS,
        max_total_tokens=NUM_SLOTS * PAGES_EACH * PAGE_SIZE,
        chunked_prefill_size=CHUNK,
        page_size=PAGE_SIZE,
        random_seed=0,
        log_level="warning",
        cuda_graph_max_bs=GRAPH_BATCH if graphs else 0,
        drafts=drafts,
    )
    spec = inspect_checkpoint(config.model_path, config.load_format, needs_tokenizer=False)
    draft = inspect_draft(str(folders.draft), drafts.load_format)
    return build_worker(config, spec, draft, lambda done, total: None)


def enter(slot: int, length: int, sampling: SamplingParams, *, warm: bool = True) -> NewRequest:
    prompt = random.Random(slot).choices(range(100, 3000), k=length)
    pages = list(range(1 + PAGES_EACH * slot, 1 + PAGES_EACH * (slot + 1)))
    return NewRequest(slot, prompt, length, sampling, pages, 0, warm=warm)


def plans() -> list[Plan]:
    """A small prefill of three requests; steps with drafts, with fewer, without and past the end of the pages; a large
    prefill in two chunks beside them; another request in a slot that has just become free.
    """
    new = [enter(slot, length, SAMPLINGS[slot]) for slot, length in enumerate(LENGTHS)]
    large = enter(3, PAGES_EACH * PAGE_SIZE - 4, SAMPLINGS[0], warm=False)
    found = [Plan(1, new=new, chunks=[PrefillChunk(each.slot, 0, each.prompt_len, True) for each in new])]
    found.append(Plan(2, decode=[2, 0, 1], draft_depths={0: DEPTH, 1: 1}))
    found.append(Plan(3, decode=[0, 1, 2], new=[large], chunks=[PrefillChunk(3, 0, 200, False)]))
    rest = PrefillChunk(3, 200, large.prompt_len - 200, True)
    found.append(Plan(4, decode=[0, 1], draft_depths={0: DEPTH}, chunks=[rest]))
    for step in range(5, 8):
        found.append(Plan(step, decode=[3, 1, 0, 2], draft_depths={slot: DEPTH for slot in range(3)}))
    other = enter(1, 18, SAMPLINGS[2])
    found.append(Plan(8, release=[1, 3], new=[other], chunks=[PrefillChunk(1, 0, 18, True)], decode=[0]))
    found.append(Plan(9, decode=[1, 0], draft_depths={0: DEPTH, 1: DEPTH}))
    return found


def run(worker: Worker) -> int:
    """Execute the plans, two at a time; returns the number of tokens."""
    results = []
    for plan in plans():
        while worker.num_pending >= 2:
            results += worker.finished()
        worker.submit(plan)
    while worker.num_pending:
        results += worker.finished()
    results += worker.finished()
    errors = [entry.error for result in results for entry in result.results if entry.error is not None]
    if errors:
        raise SystemExit(f"{len(errors)} rows failed: {errors[0]}")
    return sum(len(entry.token_ids) for result in results for entry in result.results)


def multiply() -> None:
    """Products of few rows as no layer of so small a model takes them, with blocks and tiles in part."""
    from slipstream.kernels.skinny import skinny_gate_up, skinny_linear
    from slipstream.kernels.skinny_configs import SkinnyConfig

    x, weight = (torch.randn(rows, 200, device="cuda").bfloat16() for rows in (5, 300))
    torch.cuda.synchronize()
    for config in (
        SkinnyConfig("dot", 32, 64, 4, 3, split_k=2, prefetch=True),
        SkinnyConfig("tma", 64, 64, 4, 3, split_k=2, prefetch=True),
        SkinnyConfig("mma", 16, 64, 2, 2, prefetch=True),
    ):
        skinny_linear(x, weight, config)
        skinny_gate_up(x, weight, config)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: only to try the script")
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    if args.graphs and os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING"):
        parser.error("PYTORCH_NO_CUDA_MEMORY_CACHING is set, but graphs need that memory: add --no-graphs")
    with tempfile.TemporaryDirectory() as folder:
        backend = "triton" if on_gpu else "torch_native"
        worker = load(Path(folder), graphs=args.graphs and on_gpu, device=args.device, backend=backend)
        num_tokens = run(worker)
    if on_gpu:
        multiply()
        torch.cuda.synchronize()
    print(f"{len(plans())} steps, {num_tokens} tokens, {'with' if args.graphs and on_gpu else 'without'} graphs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
