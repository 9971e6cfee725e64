"""A worker on a tiny checkpoint, and a driver that plans for it as a scheduler would."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slipstream.config.processes import WorkerConfig
from slipstream.hf_transformers.inspect import inspect_checkpoint, inspect_draft
from slipstream.messages.sampling import SamplingParams
from slipstream.messages.to_scheduler import SlotResult, StepResult
from slipstream.messages.to_worker import NewRequest, Plan, PrefillChunk
from slipstream.worker.build import build_worker
from slipstream.worker.worker import Worker

GREEDY = SamplingParams(max_new_tokens=64, seed=0, temperature=0.0)


def worker_config(path: Path | str, **changes: Any) -> WorkerConfig:
    values: dict[str, Any] = dict(
        model_path=str(path),
        config_format="auto",
        load_format="mistral",
        tokenizer_path=None,
        dtype="float32",
        device="cpu",
        attention_backend="torch_native",
        mem_fraction_static=0.5,
        context_length=128,
        max_running_requests=8,
        max_total_tokens=1024,
        chunked_prefill_size=512,
        page_size=4,
        random_seed=0,
        log_level="warning",
    )
    return WorkerConfig(**(values | changes))


def load_worker(path: Path | str, **changes: Any) -> Worker:
    """With `drafts` in `changes`, the draft in its model_path is loaded as well."""
    config = worker_config(path, **changes)
    spec = inspect_checkpoint(str(path), config.load_format, needs_tokenizer=False)
    draft = None
    if config.drafts is not None and config.drafts.model_path is not None:
        draft = inspect_draft(config.drafts.model_path, config.drafts.load_format)
    return build_worker(config, spec, draft, lambda done, total: None)


class Driver:
    """Numbers the plans and returns results by slot."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.num_steps = 0

    def step(self, **plan: Any) -> dict[int, SlotResult]:
        self.num_steps += 1
        result: StepResult = self.worker.step(Plan(step=self.num_steps, **plan))
        assert result.step == self.num_steps
        return {entry.slot: entry for entry in result.results}

    def prefill(
        self,
        slot: int,
        prompt: Sequence[int],
        pages: Sequence[int],
        *,
        num_cached: int = 0,
        sampling: SamplingParams = GREEDY,
        chunk: int = 10_000,
        warm: bool = False,
        **plan: Any,
    ) -> list[SlotResult]:
        """Enter a request and compute its prompt in chunks of at most `chunk` tokens; the result of each."""
        new = NewRequest(slot, list(prompt), len(prompt), sampling, list(pages), num_cached, warm=warm)
        results = []
        for start in range(num_cached, len(prompt), chunk):
            length = min(chunk, len(prompt) - start)
            last = start + length == len(prompt)
            first = {"new": [new], **plan} if start == num_cached else {}
            results.append(self.step(chunks=[PrefillChunk(slot, start, length, last)], **first)[slot])
        return results

    def generate(
        self, slot: int, prompt: Sequence[int], pages: Sequence[int], num_tokens: int, **prefill: Any
    ) -> list[int]:
        """Prompt and `num_tokens` tokens after it, alone in each step."""
        tokens = list(self.prefill(slot, prompt, pages, **prefill)[-1].token_ids)
        while len(tokens) < num_tokens:
            tokens += self.step(decode=[slot])[slot].token_ids
        return tokens
