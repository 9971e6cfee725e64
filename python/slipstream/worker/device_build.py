"""Builds the worker that never waits for the device, and captures its graphs."""

import time
from typing import cast

import torch

from slipstream.attention.base import DeviceAttention
from slipstream.config.processes import WorkerConfig, WorkerDrafts
from slipstream.errors import ConfigError
from slipstream.log import get_logger
from slipstream.messages.to_worker import PrefillChunk
from slipstream.speculative.autoregressive import AutoRegressiveSpeculator
from slipstream.speculative.device_chain import DeviceChain
from slipstream.weights.load import ReportProgress
from slipstream.worker.device_parts import DeviceParts
from slipstream.worker.device_worker import DeviceWorker
from slipstream.worker.naming import naming
from slipstream.worker.prefill_program import PrefillProgram, PrefillShape
from slipstream.worker.step_graphs import StepGraphs, batch_buckets, prefill_buckets
from slipstream.worker.worker import WorkerParts

logger = get_logger(__name__)


def host_reads(parts: WorkerParts, drafts: WorkerDrafts | None) -> str | None:
    """What of this worker only works with a look at the device in the middle of a step; None: nothing."""
    if not hasattr(parts.attention, "plan_rows"):
        return "the attention backend plans on the host"
    if parts.model.reads_on_host:
        return "the model's experts are chosen on the host"
    if drafts is None or parts.speculation is None:
        return None
    speculator = parts.speculation.speculator
    if not isinstance(speculator, AutoRegressiveSpeculator):
        return f"{drafts.algorithm} drafts on the host"
    if not drafts.shape.is_chain:
        return "trees of drafts are built on the host"
    if drafts.rejection_sampling:
        return "rejection sampling is decided on the host"
    if drafts.simulated_pattern:
        return "a pattern of simulated acceptance is kept on the host"
    if speculator.model.reads_on_host or not hasattr(speculator.attention, "plan_rows"):
        return "the draft's experts or its attention are planned on the host"
    return None


def make_device_worker(parts: WorkerParts, config: WorkerConfig, progress: ReportProgress) -> DeviceWorker:
    """`parts` without host_reads()."""
    tables = parts.sampler.tables()
    chain = None
    if parts.speculation is not None:
        speculator = parts.speculation.speculator
        assert isinstance(speculator, AutoRegressiveSpeculator)
        chain = DeviceChain(speculator, tables)
    device_parts = DeviceParts(
        model=parts.model,
        attention=cast(DeviceAttention, parts.attention),
        state=parts.state,
        tables=tables,
        chain=chain,
        simulated_length=config.drafts.simulated_length if config.drafts is not None else None,
        max_kv_len=parts.state.max_pages * parts.state.page_size,
    )
    _try_long_prompt(device_parts, config.chunked_prefill_size, config.context_length)
    graphs = StepGraphs(device_parts)
    if config.cuda_graph_max_bs:
        graphs.capture(
            batch_buckets(config.cuda_graph_max_bs),
            depths_of(config.drafts),
            prefill_buckets(config.chunked_prefill_size, config.max_running_requests),
            progress,
        )
    return DeviceWorker(parts, device_parts, graphs)


def _try_long_prompt(parts: DeviceParts, num_rows: int, context_length: int) -> None:
    """Run the largest prefill step there can be once, of the dummy slot: its kernels are compiled before traffic comes,
    and if memory does not suffice that shows now.
    """
    started = time.perf_counter()
    dummy = parts.state.dummy_slot
    lengths = [min(context_length, num_rows - first) for first in range(0, num_rows, context_length)]
    chunks = [PrefillChunk(dummy, 0, length, True) for length in lengths]
    flags = "--chunked-prefill-size or --mem-fraction-static"
    with naming(f"a prefill step of {num_rows} tokens", flags, ConfigError), torch.inference_mode():
        program = PrefillProgram(parts, PrefillShape.of(chunks), extends=parts.chain is not None)
        program.load(chunks, {dummy: torch.zeros(context_length, dtype=torch.int64)})
        program.plan_on_host(chunks)
        program.run()
        if parts.device.type == "cuda":
            torch.cuda.synchronize(parts.device)
    logger.info("a prefill step of %d tokens, kernels compiled: %.1f s", num_rows, time.perf_counter() - started)


def depths_of(drafts: WorkerDrafts | None) -> list[int]:
    """Numbers of drafts that steps have: all up to the most where they are chosen for each step.

    >>> depths_of(None)
    [0]
    """
    if drafts is None:
        return [0]
    return list(range(drafts.shape.depth + 1)) if drafts.adaptive else [0, drafts.shape.depth]
