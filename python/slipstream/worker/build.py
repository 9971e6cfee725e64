"""From a configuration and the specs of target and draft to a worker that is ready."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slipstream.attention.layer import AttentionLayer
from slipstream.attention.registry import ATTENTION_BACKENDS
from slipstream.config.processes import WorkerConfig
from slipstream.errors import ConfigError
from slipstream.hf_transformers.spec import CheckpointSpec, DrafterSpec, ModelSpec
from slipstream.messages.to_scheduler import WorkerReady
from slipstream.models.base import CausalLM
from slipstream.models.registry import MODELS
from slipstream.models.tables import TABLES
from slipstream.sampling.sampler import Sampler
from slipstream.sampling.simulated import Simulation
from slipstream.sampling.verifier import Verifier
from slipstream.speculative.parts import LoadedDraft, SpeculatorParts
from slipstream.speculative.registry import SPECULATORS
from slipstream.weights.load import ReportProgress
from slipstream.worker.device_state import DeviceState, rows_past_limit
from slipstream.worker.images import ImageStore
from slipstream.worker.kv_pool import PoolLimits, PoolSize, allocate_caches, kv_bytes_per_token, size_pool
from slipstream.worker.memory import device_memory
from slipstream.worker.speculation import Speculation
from slipstream.worker.threads import usable_cores
from slipstream.worker.weight_plan import WeightPlan
from slipstream.worker.worker import Worker

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class _Model:
    """A target or a draft before it is loaded."""

    layers: tuple[AttentionLayer, ...]
    weights: WeightPlan
    dtype: torch.dtype  # of activations and KV


def build_worker(config: WorkerConfig, spec: ModelSpec, draft: DrafterSpec | None, progress: ReportProgress) -> Worker:
    """Make room, read the weights and build everything. `progress` gets (done, total) tensors, of the target and then
    of the draft. The draft has its own configuration, dtype, quantisation, attention and caches.

    Raises ConfigError where an option cannot work here, CheckpointError where the weights do not fit the model.
    """
    started = time.perf_counter()
    device, dtype = _open_device(config.device), _DTYPES[config.dtype]
    backend = ATTENTION_BACKENDS.get(config.attention_backend)
    specs: list[CheckpointSpec] = [spec] if draft is None else [spec, draft]
    draft_dtype = _DTYPES[config.drafts.dtype or config.dtype] if config.drafts is not None else dtype
    models = [
        _Model(TABLES.get(each.architecture).attention_layers(each.config), WeightPlan(each), each_dtype)
        for each, each_dtype in zip(specs, (dtype, draft_dtype), strict=False)
    ]
    for model in models:
        if problem := backend.supports(model.layers, model.dtype, device):
            raise ConfigError(f"--attention-backend {config.attention_backend} {problem}; choose another")
    weight_bytes = sum(model.weights.resident_bytes(model.dtype, device) for model in models)
    bytes_per_token = sum(kv_bytes_per_token(model.layers, model.dtype) for model in models)
    pool = size_pool(_limits(config), bytes_per_token, weight_bytes, device_memory(device))
    state = DeviceState(
        config.max_running_requests,
        pool.num_pages,
        config.page_size,
        config.context_length,
        device,
        rows_past_limit(config.drafts),
    )
    target = _load_target(spec, models[0], config, device, progress)
    caches = _allocate(models[0], pool, config, device)
    rejection = config.drafts is not None and config.drafts.rejection_sampling
    sampler = Sampler(config.max_running_requests, spec.vocab_size, device, rejection_sampling=rejection)
    speculation = simulation = None
    if config.drafts is not None:
        simulation = Simulation.of(config.drafts.simulated_length, config.drafts.simulated_pattern)
        loaded = None
        if draft is not None:
            parameters = models[1].weights.fill(models[1].dtype, device, config.random_seed, progress)
            draft_caches = _allocate(models[1], pool, config, device)
            loaded = LoadedDraft(draft, parameters, models[1].layers, backend, draft_caches)
        parts = SpeculatorParts(
            drafts=config.drafts,
            state=state,
            sampler=sampler,
            target=target,
            num_slots=config.max_running_requests,
            vocab_size=spec.vocab_size,
            device=device,
            dtype=dtype,
            draft=loaded,
        )
        speculation = Speculation(SPECULATORS.get(config.drafts.algorithm)(parts))
    encoder = target.image_encoder
    return Worker(
        model=target,
        attention=backend(models[0].layers, caches),
        caches=caches,
        state=state,
        sampler=sampler,
        verifier=Verifier(sampler, simulation),
        images=ImageStore(encoder, spec.images, device) if encoder and spec.images else None,
        speculation=speculation,
        vocab_size=spec.vocab_size,
        ready=WorkerReady(
            pool.num_pages,
            _info(config, device, models, weight_bytes, bytes_per_token, pool, time.perf_counter() - started),
        ),
        parameters_per_layer=models[0].weights.num_parameters // len(models[0].layers),
    )


def _limits(config: WorkerConfig) -> PoolLimits:
    return PoolLimits(
        config.page_size,
        config.context_length,
        config.max_running_requests,
        config.max_total_tokens,
        config.mem_fraction_static,
    )


def _load_target(
    spec: ModelSpec, model: _Model, config: WorkerConfig, device: torch.device, progress: ReportProgress
) -> CausalLM:
    parameters = model.weights.fill(model.dtype, device, config.random_seed, progress)
    target = MODELS.get(spec.architecture)(spec.config, parameters, device)
    assert not parameters.remaining(), f"{spec.architecture} left parameters unused: {parameters.remaining()}"
    return target


def _allocate(model: _Model, pool: PoolSize, config: WorkerConfig, device: torch.device) -> list[Tensor]:
    """Every cache of target and draft has the same pages under the same ids."""
    return allocate_caches(model.layers, pool.num_pages, config.page_size, model.dtype, device)


def _info(
    config: WorkerConfig, device: torch.device, models: Sequence[_Model], weight_bytes: int, bytes_per_token: int,
    pool: PoolSize, load_s: float,
) -> dict[str, Any]:  # fmt: skip
    return {
        "device": str(device),
        "dtype": config.dtype,
        "attention_backend": config.attention_backend,
        "num_cores": usable_cores() if device.type == "cpu" else 0,
        "parameters": models[0].weights.num_parameters,
        "draft_parameters": models[1].weights.num_parameters if len(models) > 1 else 0,
        "weight_bytes": weight_bytes,
        "kv_bytes_per_token": bytes_per_token,
        "num_pages_reason": pool.reason,
        "load_s": load_s,
    }


def _open_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device is cuda, but torch finds no usable CUDA device; use --device cpu")
    return torch.device(name)
