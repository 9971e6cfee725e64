"""From the options as typed to the configuration of every process, with a reason for each value."""

import re
from dataclasses import dataclass
from typing import Any, Protocol

from slipstream.config.chooser import Chooser
from slipstream.config.flags import AUTO, check_fields
from slipstream.config.images import ImageFormat
from slipstream.config.machine import Machine
from slipstream.config.options import LaunchOptions
from slipstream.config.processes import SchedulerConfig, ServerConfig, TokenizerConfig, WorkerConfig
from slipstream.config.speculation import DraftFacts, Drafts, resolve_drafts
from slipstream.errors import ConfigError

MAX_GRAPH_BATCH = 256
GPU_MEM_FRACTION = 0.92
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}(:[0-9]{{1,5}})?")


class ModelFacts(Protocol):
    """What resolving needs to know about the checkpoint; a ModelSpec has it."""

    @property
    def path(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def context_length(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...
    @property
    def tokenizer_kind(self) -> str: ...
    @property
    def tokenizer_path(self) -> str: ...
    @property
    def images(self) -> ImageFormat | None: ...


@dataclass(frozen=True)
class Resolved:
    """One concrete configuration per process. `reasons` maps a flag's field name to (value, why)."""

    server: ServerConfig
    tokenizer: TokenizerConfig
    scheduler: SchedulerConfig
    worker: WorkerConfig
    reasons: dict[str, tuple[Any, str]]


@dataclass(frozen=True)
class _Shared:
    """Values that more than one process needs."""

    device: str
    dtype: str
    context_length: int
    max_running_requests: int
    max_images: int
    random_seed: int
    chunked_prefill_size: int
    page_size: int
    max_steps_in_flight: int
    log_level: str


def resolve(
    options: LaunchOptions, model: ModelFacts, machine: Machine, system_seed: int, draft: DraftFacts | None = None
) -> Resolved:
    """Fill in every `auto`. Pure: `system_seed` is the seed to use when none was given, `draft` the one to serve with.

    Raises ConfigError when a value is out of range or two values cannot go together.
    """
    check_fields(options)
    chooser = Chooser(options)
    shared = _shared(chooser, options, model, machine, system_seed)
    drafts = resolve_drafts(chooser, options, draft, dtype=shared.dtype, max_steps_in_flight=shared.max_steps_in_flight)
    return Resolved(
        _server(chooser, shared, options, model, drafts),
        _tokenizer(chooser, shared, options, model),
        _scheduler(chooser, shared, drafts),
        _worker(chooser, shared, options, model, drafts),
        chooser.reasons,
    )


def check_context_length(context_length: int, model_length: int) -> None:
    """Raises ConfigError for more than the model was made for."""
    if context_length > model_length:
        raise ConfigError(f"--context-length is {context_length}, but the model was made for at most {model_length}")


def _shared(chooser: Chooser, options: LaunchOptions, model: ModelFacts, machine: Machine, system_seed: int) -> _Shared:
    pick = chooser.choose
    device = pick(
        "device", lambda: ("cuda", "a CUDA device is here") if machine.has_cuda else ("cpu", "no CUDA device")
    )
    context_length = pick("context_length", lambda: (model.context_length, "the model's own"))
    check_context_length(context_length, model.context_length)
    max_images = pick("max_images")
    if model.images is None:
        max_images = 0
        chooser.reasons["max_images"] = (0, "the model takes text only")
    return _Shared(
        device=device,
        dtype=pick("dtype", lambda: _auto_dtype(device == "cuda", model, machine)),
        context_length=context_length,
        max_running_requests=pick("max_running_requests", lambda: (256, "GPU") if device == "cuda" else (32, "CPU")),
        max_images=max_images,
        random_seed=pick("random_seed", lambda: (system_seed, "from the system")),
        chunked_prefill_size=pick(
            "chunked_prefill_size",
            lambda: (8192, "GPU") if device == "cuda" else (512, "CPU: short steps keep streams smooth"),
        ),
        page_size=pick("page_size", lambda: (16, "a balance of reuse and bookkeeping")),
        max_steps_in_flight=1 if pick("disable_overlap_schedule") else 2,
        log_level=pick("log_level"),
    )


def _server(
    chooser: Chooser, shared: _Shared, options: LaunchOptions, model: ModelFacts, drafts: Drafts | None
) -> ServerConfig:
    pick = chooser.choose
    name = pick(
        "served_model_name",
        lambda: (model.name, "the folder's name" if options.model_path else "the embedded model"),
    )
    domains = _domains(pick("allow_media_domain"))
    if domains and not shared.max_images:
        raise ConfigError("--allow-media-domain is given, but no images are taken: leave it out")
    return ServerConfig(
        host=pick("host"),
        port=pick("port"),
        api_key=pick("api_key"),
        served_model_name=name,
        vocab_size=model.vocab_size,
        context_length=shared.context_length,
        max_running_requests=shared.max_running_requests,
        max_queued_requests=pick("max_queued_requests"),
        watchdog_timeout_s=pick("watchdog_timeout_s"),
        drain_timeout_s=pick("drain_timeout_s"),
        sse_keepalive_s=pick("sse_keepalive_s"),
        max_request_bytes=pick("max_request_bytes"),
        max_images=shared.max_images,
        allowed_media_domains=domains,
        random_seed=shared.random_seed,
        log_level=shared.log_level,
        speculative_algorithm=drafts.worker.algorithm if drafts else None,
    )


def _tokenizer(chooser: Chooser, shared: _Shared, options: LaunchOptions, model: ModelFacts) -> TokenizerConfig:
    chooser.reasons["tokenizer_path"] = (
        model.tokenizer_path,
        "as given" if options.tokenizer_path else "found beside the model",
    )
    return TokenizerConfig(
        tokenizer_kind=model.tokenizer_kind,
        tokenizer_path=model.tokenizer_path,
        vocab_size=model.vocab_size,
        eos_token_ids=model.eos_token_ids,
        images=model.images if shared.max_images else None,
        image_token_id=model.images.image_token_id if model.images else None,
        log_level=shared.log_level,
    )


def _scheduler(chooser: Chooser, shared: _Shared, drafts: Drafts | None) -> SchedulerConfig:
    pick = chooser.choose
    return SchedulerConfig(
        context_length=shared.context_length,
        max_running_requests=shared.max_running_requests,
        chunked_prefill_size=shared.chunked_prefill_size,
        page_size=shared.page_size,
        prefix_cache=not pick("disable_radix_cache"),
        max_steps_in_flight=shared.max_steps_in_flight,
        log_level=shared.log_level,
        drafts=drafts.scheduler if drafts else None,
    )


def _worker(
    chooser: Chooser, shared: _Shared, options: LaunchOptions, model: ModelFacts, drafts: Drafts | None
) -> WorkerConfig:
    pick, on_gpu = chooser.choose, shared.device == "cuda"
    chooser.reasons["model_path"] = (
        model.path,
        "as given" if options.model_path else "the model that ships with Slipstream",
    )
    chooser.reasons["revision"] = (options.revision, "as given" if options.revision else "default")
    max_total_tokens = pick("max_total_tokens", lambda: (None, "what fits in memory, at most what can run at once"))
    if max_total_tokens is not None and max_total_tokens < shared.page_size:
        raise ConfigError(
            f"--max-total-tokens is {max_total_tokens}, less than one page: --page-size is {shared.page_size}"
        )
    mem_fraction = pick(
        "mem_fraction_static",
        lambda: (GPU_MEM_FRACTION, "GPU") if on_gpu else (0.25, "CPU: a guest among other programs"),
    )
    return WorkerConfig(
        model_path=model.path,
        config_format=pick("config_format"),
        load_format=pick("load_format", lambda: (model.layout, f"the folder has the {model.layout} layout")),
        tokenizer_path=model.tokenizer_path or None,
        dtype=shared.dtype,
        device=shared.device,
        attention_backend=pick(
            "attention_backend",
            lambda: (AUTO, "the fastest that supports the model") if on_gpu else ("torch_native", "CPU"),
        ),
        mem_fraction_static=mem_fraction,
        context_length=shared.context_length,
        max_running_requests=shared.max_running_requests,
        max_total_tokens=max_total_tokens,
        chunked_prefill_size=shared.chunked_prefill_size,
        page_size=shared.page_size,
        random_seed=shared.random_seed,
        log_level=shared.log_level,
        cuda_graph_max_bs=_graph_batch(chooser, shared),
        drafts=drafts.worker if drafts else None,
    )


def _graph_batch(chooser: Chooser, shared: _Shared) -> int:
    """Most requests in a decode step that is a CUDA graph; 0: none is."""
    if shared.device != "cuda":
        if chooser.choose("cuda_graph_max_bs") != AUTO:
            raise ConfigError("--cuda-graph-max-bs is given, but there are no CUDA graphs on a CPU: leave it out")
        chooser.reasons["cuda_graph_max_bs"] = (0, "CPU")
        chooser.choose("disable_cuda_graph")
        return 0
    if chooser.choose("disable_cuda_graph"):
        if chooser.choose("cuda_graph_max_bs") != AUTO:
            raise ConfigError("--cuda-graph-max-bs is given, but --disable-cuda-graph too: leave one of them out")
        chooser.reasons["cuda_graph_max_bs"] = (0, "--disable-cuda-graph")
        return 0
    most = chooser.choose(
        "cuda_graph_max_bs",
        lambda: (min(shared.max_running_requests, MAX_GRAPH_BATCH), "all that may run at once, at most 256"),
    )
    if most > shared.max_running_requests:
        raise ConfigError(
            f"--cuda-graph-max-bs is {most}, but only {shared.max_running_requests} requests run at once; lower it or "
            "raise --max-running-requests"
        )
    return int(most)


def _auto_dtype(on_gpu: bool, model: ModelFacts, machine: Machine) -> tuple[str, str]:
    if on_gpu:
        return model.dtype, "as stored"
    if machine.has_bf16_instructions:
        return "bfloat16", "this CPU has bfloat16 instructions"
    return "float32", "this CPU has no bfloat16 instructions"


def _domains(flag_value: str | None) -> tuple[str, ...]:
    """Hosts, each perhaps with a port; raises ConfigError for what could never match a URL's host.

    >>> _domains("Example.org, upload.example.org:8443")
    ('example.org', 'upload.example.org:8443')
    """
    if flag_value is None:
        return ()
    entries = tuple(name.strip().lower() for name in flag_value.split(","))
    for entry in entries:
        port = entry.partition(":")[2]
        if not _HOST.fullmatch(entry) or (port and not 0 < int(port) < 65536):
            raise ConfigError(
                f"--allow-media-domain has the entry {entry!r}; it must be a host like images.example.org, or "
                "host:port, without scheme, path and wildcards, other alphabets as xn--..."
            )
    return entries
