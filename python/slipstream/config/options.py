"""What a user may set: every flag of `slipstream serve`, by SGLang's names where SGLang has the thing."""

from dataclasses import dataclass

from slipstream.config.algorithms import ALGORITHMS, NO_DRAFTS, read_algorithm
from slipstream.config.drafting import MAX_DRAFTS
from slipstream.config.flags import AUTO, Auto, flag
from slipstream.log import LEVELS

DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class LaunchOptions:
    """The raw options, as typed. resolve() turns them into one concrete configuration for each process."""

    model_path: str | None = flag(
        None, "folder of the checkpoint or name of its repository; none: the small model that ships with Slipstream"
    )
    tokenizer_path: str | None = flag(None, "folder or file of the tokenizer; none: the checkpoint's own")
    served_model_name: str | None = flag(None, "model name in the API; none: the folder's name")
    revision: str | None = flag(None, "branch, tag or commit, where --model-path is a repository's name")
    config_format: str = flag(
        AUTO,
        "which configuration file to read: params.json (mistral) or config.json (hf)",
        choices=(AUTO, "mistral", "hf"),
    )
    load_format: str = flag(
        AUTO, "which layout's weights to load, or dummy for random ones", choices=(AUTO, "mistral", "hf", "dummy")
    )
    dtype: str = flag(
        AUTO,
        "of weights and activations; auto: as stored on a GPU, on a CPU bfloat16 where it is fast",
        choices=(AUTO, *DTYPES),
    )
    device: str = flag(AUTO, "where the model runs", choices=(AUTO, "cpu", "cuda"))
    context_length: int | Auto = flag(AUTO, "longest prompt plus answer, in tokens; auto: the model's own", minimum=1)

    host: str = flag("127.0.0.1", "address to listen on; 0.0.0.0 is every interface", server_only=True)
    port: int = flag(30000, "port to listen on; 0 takes a free one", minimum=0, maximum=65535, server_only=True)
    api_key: str | None = flag(
        None, "clients must send it as a bearer token; also read from SLIPSTREAM_API_KEY", secret=True, server_only=True
    )

    mem_fraction_static: float | Auto = flag(
        AUTO,
        "share of the device's memory that may be taken: on a GPU by everything together, on a CPU by weights and KV "
        "pages; auto: by device",
        minimum=0.01,
        maximum=0.99,
    )
    max_running_requests: int | Auto = flag(
        AUTO, "requests that run at once; auto: by device", minimum=1, maximum=65536
    )
    max_queued_requests: int = flag(
        256, "requests that may wait; one more is answered 503", minimum=0, server_only=True
    )
    max_total_tokens: int | Auto = flag(AUTO, "KV pool size in tokens; auto: what fits in memory", minimum=1)
    chunked_prefill_size: int | Auto = flag(
        AUTO, "most prompt tokens in one step; longer prompts are split", minimum=1, maximum=2**20
    )
    page_size: int | Auto = flag(AUTO, "tokens in one KV page", minimum=1, maximum=65536)
    attention_backend: str = flag(
        AUTO,
        "attention implementation; auto: on a GPU the fastest that supports the model, on a CPU torch_native",
        choices=(AUTO, "torch_native", "triton", "flashinfer"),
    )
    disable_cuda_graph: bool = flag(False, "launch every kernel of a step by itself: starts sooner, decodes slower")
    cuda_graph_max_bs: int | Auto = flag(
        AUTO,
        "most requests in a decode step that runs as a CUDA graph; auto: max-running-requests, at most 256",
        minimum=1,
    )
    disable_radix_cache: bool = flag(False, "do not keep finished prompts' KV pages for later prompts")
    disable_overlap_schedule: bool = flag(False, "plan a step only when the last one is done")
    random_seed: int | Auto = flag(AUTO, "seeds requests that bring none; auto: from the system", minimum=0)

    speculative_algorithm: str = flag(
        AUTO,
        "who drafts; auto: EAGLE where there is a draft, else none",
        choices=(AUTO, NO_DRAFTS, *ALGORITHMS),
        read=read_algorithm,
    )
    speculative_draft_model_path: str | None = flag(
        None,
        "folder of the draft or name of its repository; none: the one that ships with Slipstream's own model",
        alias="--speculative-draft-model",
    )
    speculative_draft_model_revision: str | None = flag(
        None, "branch, tag or commit, where --speculative-draft-model-path is a repository's name"
    )
    speculative_draft_load_format: str = flag(
        AUTO,
        "which layout's weights of the draft to load, or dummy for random ones, as with --load-format dummy",
        choices=(AUTO, "mistral", "dummy"),
    )
    speculative_draft_dtype: str = flag(
        AUTO, "of the draft's weights, activations and KV; auto: the target's", choices=(AUTO, *DTYPES)
    )
    speculative_num_steps: int | Auto = flag(
        AUTO, "longest path of drafts in one step (K); auto: 3, for a tree or NGRAM 5", minimum=1, maximum=MAX_DRAFTS
    )
    speculative_eagle_topk: int | Auto = flag(
        AUTO, "branches below each draft; auto: 1, which is a chain", minimum=1, maximum=16
    )
    speculative_num_draft_tokens: int | Auto = flag(
        AUTO,
        "most rows that a step verifies, the bonus token among them; auto: of a chain num-steps + 1, of a tree 8",
        minimum=2,
        maximum=MAX_DRAFTS + 1,
    )
    speculative_adaptive: str = flag(
        AUTO,
        "choose K for each step by load and acceptance, with the aim that drafts do not slow the server down; "
        "auto: on, unless acceptance is simulated; without a value: on",
        choices=(AUTO, "on", "off"),
        bare="on",
    )
    speculative_use_rejection_sampling: bool = flag(
        False,
        "accept drafts by rejection sampling, for chains of EAGLE: lossless, but a seed gives other answers",
    )
    speculative_ngram_min_match_window_size: int | Auto = flag(
        AUTO, "NGRAM: shortest run of tokens that is looked up; auto: 2", minimum=1, maximum=64
    )
    speculative_ngram_max_match_window_size: int | Auto = flag(
        AUTO, "NGRAM: longest run of tokens that is looked up; auto: 5", minimum=1, maximum=64
    )
    simulate_acceptance_length: float | None = flag(
        None, "for benchmarks: pretend this mean number of tokens per step; the answers are wrong", minimum=1.0
    )
    simulate_acceptance_pattern: str | None = flag(
        None, "for tests: drafts to accept in the first step, the second, ... in turn, like 0,3,1; answers are wrong"
    )

    watchdog_timeout_s: float = flag(
        300.0, "a step that takes longer counts as hung and ends the server", minimum=0.1, server_only=True
    )
    drain_timeout_s: float = flag(
        30.0, "on SIGTERM or Ctrl-C, how long running requests may go on", minimum=0.0, server_only=True
    )
    sse_keepalive_s: float = flag(15.0, "a silent stream gets a comment this often", minimum=0.1, server_only=True)
    max_request_bytes: int = flag(
        16 * 2**20, "largest request body", minimum=1024, maximum=128 * 2**20, server_only=True
    )
    max_images: int = flag(16, "most images in one request", minimum=0, maximum=256)
    allow_media_domain: str | None = flag(
        None, "hosts that image URLs may name, separated by commas; none: only data URLs", server_only=True
    )
    log_level: str = flag("info", "least severe log line to print once the server runs", choices=LEVELS)
