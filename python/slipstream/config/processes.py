"""The resolved configuration of each process: every value concrete, every object frozen."""

from dataclasses import dataclass

from slipstream.config.drafting import DraftShape
from slipstream.config.images import ImageFormat


@dataclass(frozen=True)
class Endpoints:
    """ZMQ addresses of one run, one for each receiver. All lie in one fresh directory with mode 0700."""

    server: str
    tokenizer: str
    scheduler: str
    worker: str


@dataclass(frozen=True)
class ServerConfig:
    """The server process: HTTP, limits, supervision."""

    host: str
    port: int
    api_key: str | None
    served_model_name: str
    vocab_size: int
    context_length: int  # tokens of prompt plus answer
    max_running_requests: int
    max_queued_requests: int
    watchdog_timeout_s: float
    drain_timeout_s: float
    sse_keepalive_s: float
    max_request_bytes: int
    max_images: int  # in one request; 0: the model takes none
    allowed_media_domains: tuple[str, ...]  # hosts that images may be fetched from
    random_seed: int
    log_level: str
    speculative_algorithm: str | None = None  # None: no speculation


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer process."""

    tokenizer_kind: str  # "tekken" | "sentencepiece" | "hf"
    tokenizer_path: str  # the file (tekken, sentencepiece) or the folder (hf)
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    images: ImageFormat | None  # None: images are not taken
    image_token_id: int | None  # of a model with a vision encoder, whether it takes images or not
    log_level: str


@dataclass(frozen=True)
class SchedulerDrafts:
    """What the scheduler knows of the draft: sizes and needs, not what it is."""

    shape: DraftShape
    adaptive: bool  # choose the depth of every step; else it is always shape.depth
    successor_depth: int  # KV of a token depends on so many tokens after it
    has_kv: bool  # the draft keeps KV of its own, which is complete (warm) or not (cold)


@dataclass(frozen=True)
class SchedulerConfig:
    """The scheduler process. The number of pages is measured by the worker and arrives as WorkerReady."""

    context_length: int
    max_running_requests: int
    chunked_prefill_size: int  # most prompt tokens of one step; decode rows come on top
    page_size: int  # tokens
    prefix_cache: bool
    max_steps_in_flight: int  # 2 overlaps planning with the step before
    log_level: str
    drafts: SchedulerDrafts | None = None  # None: no speculation


@dataclass(frozen=True)
class WorkerDrafts:
    """Who drafts, and how drafts are accepted."""

    algorithm: str  # key of speculative/: "EAGLE" | "NGRAM"
    shape: DraftShape
    max_steps_in_flight: int
    model_path: str | None = None  # a folder; None: the algorithm needs no model
    load_format: str = "auto"
    dtype: str | None = None  # "bfloat16" | "float16" | "float32"; None: the target's
    adaptive: bool = False  # the depth changes from step to step
    rejection_sampling: bool = False
    simulated_length: float | None = None  # mean acceptance length to pretend
    simulated_pattern: tuple[int, ...] = ()  # accepted drafts of each verify step in turn, to pretend
    ngram_min: int = 2  # shortest and longest run of tokens that is looked up
    ngram_max: int = 5

    @property
    def is_simulated(self) -> bool:
        """Whether acceptance is pretended, so that answers are wrong and say nothing about the draft."""
        return self.simulated_length is not None or self.simulated_pattern != ()


@dataclass(frozen=True)
class WorkerConfig:
    """One worker process: what to load, where, and the sizes of its buffers."""

    model_path: str  # a folder
    config_format: str  # "auto" | "mistral" | "hf"
    load_format: str  # "auto" | "mistral" | "hf" | "dummy"
    tokenizer_path: str | None  # where the ids of image tokens are looked up; None: beside the model
    dtype: str
    device: str
    attention_backend: str  # "auto": the fastest that supports the model
    mem_fraction_static: float
    context_length: int
    max_running_requests: int
    max_total_tokens: int | None  # None: what fits in memory
    chunked_prefill_size: int  # most prompt tokens of one step, which buffers are sized for
    page_size: int
    random_seed: int
    log_level: str
    cuda_graph_max_bs: int = 0  # most requests in a decode step that is a CUDA graph; 0: no graphs
    drafts: WorkerDrafts | None = None  # None: no speculation
