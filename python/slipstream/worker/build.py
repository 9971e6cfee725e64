"""From a configuration and the specs of target and draft to a worker that is ready."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slipstream.attention.base import AttentionBackend
from slipstream.attention.choose import choose_backend
from slipstream.config.processes import WorkerConfig, WorkerDrafts
from slipstream.errors import ConfigError
from slipstream.hf_transformers.spec import CheckpointSpec, DrafterSpec, ModelSpec
from slipstream.log import get_logger
from slipstream.messages.to_scheduler import WorkerReady
from slipstream.models.base import CausalLM
from slipstream.models.registry import MODELS
from slipstream.models.tables import TABLES
from slipstream.sampling.sampler import Sampler
from slipstream.sampling.simulated import Simulation
from slipstream.sampling.verifier import Verifier
from slipstream.speculative.draft_model import DraftModelSpeculator
from slipstream.speculative.parts import LoadedDraft, SpeculatorParts
from slipstream.speculative.registry import SPECULATORS
from slipstream.weights.load import ReportProgress
from slipstream.worker.device_state import DeviceState, rows_past_limit
from slipstream.worker.images import ImageStore
from slipstream.worker.kv_pool import PoolLimits, PoolSize, allocate_caches, size_pool
from slipstream.worker.memory import device_memory
from slipstream.worker.memory_plan import MemoryPlan, measured_table, plan_memory
from slipstream.worker.plan_facts import memory_facts
from slipstream.worker.planned_model import PlannedModel
from slipstream.worker.speculation import Speculation
from slipstream.worker.threads import usable_cores
from slipstream.worker.weight_plan import WeightPlan
from slipstream.worker.worker import Worker, WorkerParts

logger = get_logger(__name__)

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class _Room:
    """The memory that is divided: pages, and on a GPU all the rest."""

    pool: PoolSize
    plan: MemoryPlan | None
    bytes_per_token: int
    weight_bytes: int


def build_worker(
    config: WorkerConfig,
    spec: ModelSpec,
    draft: DrafterSpec | None,
    progress: ReportProgress,
    capture_progress: ReportProgress = lambda done, total: None,
) -> Worker:
    """Make room, read the weights and build everything. `progress` gets (done, total) tensors, of the target and then
    of the draft, `capture_progress` CUDA graphs. The draft has its own configuration, dtype, quantisation, attention
    and caches.

    Raises ConfigError where an option cannot work here, CheckpointError where the weights do not fit the model.
    """
    started = time.perf_counter()
    device, dtype = _open_device(config.device), _DTYPES[config.dtype]
    specs: list[CheckpointSpec] = [spec] if draft is None else [spec, draft]
    draft_dtype = _DTYPES[config.drafts.dtype or config.dtype] if config.drafts is not None else dtype
    models = [
        PlannedModel(each, TABLES.get(each.architecture).attention_layers(each.config), WeightPlan(each), each_dtype)
        for each, each_dtype in zip(specs, (dtype, draft_dtype), strict=False)
    ]
    name, backend, why = choose_backend(
        config.attention_backend, [(model.layers, model.dtype) for model in models], device
    )
    room = _make_room(config, spec, models, backend, device)
    state = DeviceState(
        config.max_running_requests,
        config.page_size,
        config.context_length,
        device,
        rows_past_limit(config.drafts),
    )
    num_slots = config.max_running_requests + 1  # with the dummy
    rejection = config.drafts is not None and config.drafts.rejection_sampling
    sampler = Sampler(num_slots, spec.vocab_size, device, rejection_sampling=rejection)
    if room.plan is not None:
        logger.info("GPU memory, as planned:\n%s", room.plan.table())
    loading = time.perf_counter()
    target = _load_target(spec, models[0], config, device, progress)
    # Reading takes memory for a moment that is the caches' later: so all weights come first.
    draft_parameters = (
        None if draft is None else models[1].weights.fill(models[1].dtype, device, config.random_seed, progress)
    )
    _log_loading(room.weight_bytes, device, loading)
    caches = _allocate(models[0], room.pool, config, device)
    loaded = None
    if draft is not None and draft_parameters is not None:
        draft_caches = _allocate(models[1], room.pool, config, device)
        loaded = LoadedDraft(draft, draft_parameters, models[1].layers, backend, draft_caches)
    speculation, simulation = _make_speculation(config.drafts, state, sampler, target, spec.vocab_size, dtype, loaded)
    attention = backend(models[0].layers, caches)
    encoder = target.image_encoder
    info = _info(config, device, models, room, (name, why))
    worker_parts = WorkerParts(
        model=target,
        attention=attention,
        caches=caches,
        state=state,
        sampler=sampler,
        verifier=Verifier(sampler, simulation),
        images=ImageStore(encoder, spec.images, device) if encoder and spec.images else None,
        speculation=speculation,
        vocab_size=spec.vocab_size,
        ready=WorkerReady(room.pool.num_pages, info),
        parameters_per_layer=models[0].weights.num_parameters // len(models[0].layers),
    )
    attention.warm_up()
    if speculation is not None and isinstance(speculation.speculator, DraftModelSpeculator):
        speculation.speculator.attention.warm_up()
    worker = _make_worker(worker_parts, config, capture_progress)
    if room.plan is not None:
        logger.info("%s", measured_table(room.plan, device))
    info["load_s"] = time.perf_counter() - started
    return worker


def _make_speculation(
    drafts: WorkerDrafts | None,
    state: DeviceState,
    sampler: Sampler,
    target: CausalLM,
    vocab_size: int,
    dtype: torch.dtype,
    draft: LoadedDraft | None,
) -> tuple[Speculation | None, Simulation | None]:
    if drafts is None:
        return None, None
    parts = SpeculatorParts(
        drafts=drafts,
        state=state,
        sampler=sampler,
        target=target,
        num_slots=state.dummy_slot + 1,
        vocab_size=vocab_size,
        device=state.bonus.device,
        dtype=dtype,
        draft=draft,
    )
    speculation = Speculation(SPECULATORS.get(drafts.algorithm)(parts))
    return speculation, Simulation.of(drafts.simulated_length, drafts.simulated_pattern)


def _make_room(
    config: WorkerConfig,
    spec: ModelSpec,
    models: Sequence[PlannedModel],
    backend: type[AttentionBackend],
    device: torch.device,
) -> _Room:
    limits = PoolLimits(
        config.page_size,
        config.context_length,
        config.max_running_requests,
        config.max_total_tokens,
        config.mem_fraction_static,
    )
    weight_bytes = sum(model.weight_bytes(device) for model in models)
    bytes_per_token = sum(model.kv_bytes_per_token for model in models)
    memory = device_memory(device)
    if device.type != "cuda":
        pool = size_pool(limits, bytes_per_token, weight_bytes, memory)
        return _Room(pool, None, bytes_per_token, weight_bytes)
    workspace_bytes = sum(backend.workspace_bytes(model.layers) for model in models)
    plan = plan_memory(limits, memory_facts(config, spec, models, device, workspace_bytes), memory)
    return _Room(plan.pool, plan, bytes_per_token, weight_bytes)


def _make_worker(parts: WorkerParts, config: WorkerConfig, capture_progress: ReportProgress) -> Worker:
    """One that never waits for the device, where everything it is made of can do without the host."""
    device = parts.state.bonus.device
    if device.type != "cuda":
        return Worker(parts)
    from slipstream.worker.device_build import host_reads, make_device_worker  # needs triton, as every GPU path does

    if problem := host_reads(parts, config.drafts):
        logger.info("steps are planned one after the other, without CUDA graphs: %s", problem)
        return Worker(parts)
    return make_device_worker(parts, config, capture_progress)


def _load_target(
    spec: ModelSpec, model: PlannedModel, config: WorkerConfig, device: torch.device, progress: ReportProgress
) -> CausalLM:
    parameters = model.weights.fill(model.dtype, device, config.random_seed, progress)
    target = MODELS.get(spec.architecture)(spec.config, parameters, device)
    assert not parameters.remaining(), f"{spec.architecture} left parameters unused: {parameters.remaining()}"
    return target


def _allocate(model: PlannedModel, pool: PoolSize, config: WorkerConfig, device: torch.device) -> list[Tensor]:
    """Every cache of target and draft has the same pages under the same ids."""
    return allocate_caches(model.layers, pool.num_pages, config.page_size, model.dtype, device)


def _log_loading(weight_bytes: int, device: torch.device, started: float) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        elapsed_s, gib = time.perf_counter() - started, weight_bytes / 2**30
        logger.info("loaded %.1f GiB of weights in %.1f s (%.1f GiB/s)", gib, elapsed_s, gib / elapsed_s)


def _info(
    config: WorkerConfig, device: torch.device, models: Sequence[PlannedModel], room: _Room, attention: tuple[str, str]
) -> dict[str, Any]:
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "dtype": config.dtype,
        "attention_backend": attention[0],
        "attention_backend_reason": attention[1],
        "num_cores": usable_cores() if device.type == "cpu" else 0,
        "parameters": models[0].weights.num_parameters,
        "draft_parameters": models[1].weights.num_parameters if len(models) > 1 else 0,
        "weight_bytes": room.weight_bytes,
        "kv_bytes_per_token": room.bytes_per_token,
        "num_pages_reason": room.pool.reason,
    }


def _open_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device is cuda, but torch finds no usable CUDA device; use --device cpu")
    return torch.device(name)
