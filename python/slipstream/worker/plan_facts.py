"""What the memory plan needs to know of a configuration and its models."""

from collections.abc import Sequence

import torch

from slipstream.config.processes import WorkerConfig
from slipstream.hf_transformers.spec import ModelSpec
from slipstream.worker.device_state import rows_past_limit
from slipstream.worker.memory_plan import ImageFacts, MemoryFacts, ModelFacts
from slipstream.worker.planned_model import PlannedModel

_GRAPH_BYTES = 512 * 2**20  # what CUDA keeps for some sixty graphs of a few hundred kernels each, and their splinters


def memory_facts(
    config: WorkerConfig, spec: ModelSpec, models: Sequence[PlannedModel], device: torch.device, workspace_bytes: int
) -> MemoryFacts:
    """`models` are the target and, if there is one, the draft."""
    target, *drafts = (_model_facts(model, device) for model in models)
    most_rows = 1 if config.drafts is None else config.drafts.shape.rows(config.drafts.shape.depth)
    decode_rows = config.max_running_requests * most_rows
    tokens_per_slot = config.context_length + rows_past_limit(config.drafts)
    vision = spec.config.get("vision_config") if spec.images is not None else None
    return MemoryFacts(
        target,
        drafts[0] if drafts else None,
        vocab_size=spec.vocab_size,
        pages_per_slot=-(-tokens_per_slot // config.page_size),
        chunk_rows=config.chunked_prefill_size,
        decode_rows=decode_rows,
        rejection_sampling=config.drafts is not None and config.drafts.rejection_sampling,
        images=ImageFacts.of(vision, spec.images.max_size) if vision is not None and spec.images is not None else None,
        workspace_bytes=workspace_bytes,
        graph_bytes=_GRAPH_BYTES if config.cuda_graph_max_bs else 0,
    )


def _model_facts(model: PlannedModel, device: torch.device) -> ModelFacts:
    return ModelFacts.of(
        model.spec.text_config,
        model.layers,
        weight_bytes=model.weight_bytes(device),
        kv_bytes_per_token=model.kv_bytes_per_token,
        item_bytes=model.dtype.itemsize,
        is_fp8=model.spec.quantization is not None,
    )
