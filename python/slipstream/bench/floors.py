"""The least time that a step can take: every weight and every cached token is read once, every product computed.

For dense models with grouped-query attention, and chains of drafts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slipstream.bench.devices import DeviceSpeed

_OTHER_KINDS = ("kv_lora_rank", "num_local_experts", "n_routed_experts")  # keys of latent attention and of experts


@dataclass(frozen=True)
class Work:
    """What a step moves and computes."""

    num_bytes: float
    flops: float

    def seconds(self, speed: DeviceSpeed, *, counts_flops: bool = True) -> float:
        """At least: memory and arithmetic at the same time, both at their best.

        Without `counts_flops` memory alone: the speed of products in another dtype than bf16 is not known.
        """
        memory_s = self.num_bytes / (speed.bandwidth_gbs * 1e9)
        if speed.bf16_tflops is None or not counts_flops:
            return memory_s
        return max(memory_s, self.flops / (speed.bf16_tflops * 1e12))


@dataclass(frozen=True)
class DecoderCost:
    """A dense decoder in numbers that steps are computed from. Norms and single rows of the embedding are left out."""

    body_weights: int  # in the matrices of all layers, an EAGLE draft's eagle_linear among them
    body_bytes: int
    head_weights: int
    head_bytes: int
    windows: tuple[int | None, ...]  # of each layer: how many tokens it looks back at most
    kv_row_bytes: int  # keys and values of one token in one layer
    row_flops: int  # scores and weighted sum of one row over one token, in one layer

    def kv_bytes(self, context: float) -> float:
        """Of one request with so many tokens."""
        return self.kv_row_bytes * self._seen(context)

    def flops(self, rows: float, context: float) -> float:
        """Of `rows` rows that see `context` tokens each, without the head."""
        return rows * (2 * self.body_weights + self.row_flops * self._seen(context))

    def prompt_flops(self, num_tokens: int) -> float:
        """Of one prompt, row t seeing t tokens, without the head."""
        seen = sum(_triangle(num_tokens, window) for window in self.windows)
        return 2.0 * self.body_weights * num_tokens + self.row_flops * seen

    def _seen(self, context: float) -> float:
        return sum(context if window is None else min(context, window) for window in self.windows)


@dataclass(frozen=True)
class PairCost:
    """A target and, if there is one, what drafts for it: `num_drafts` passes over the draft in each step, a chain."""

    target: DecoderCost
    draft: DecoderCost | None = None
    num_drafts: int = 0

    def decode_step(self, batch_size: int, context: float) -> Work:
        """One step of requests that have `context` tokens each. A draft reads the target's head in every pass."""
        target, draft, rows = self.target, self.draft, batch_size * (self.num_drafts + 1)
        num_bytes = target.body_bytes + target.head_bytes + batch_size * target.kv_bytes(context)
        flops = target.flops(rows, context) + 2 * rows * target.head_weights
        if draft is not None and self.num_drafts:
            num_bytes += self.num_drafts * (draft.body_bytes + draft.head_bytes + batch_size * draft.kv_bytes(context))
            # the first pass takes every row that was verified, the others one row of each request
            flops += draft.flops(rows + batch_size * (self.num_drafts - 1), context)
            flops += 2 * batch_size * self.num_drafts * draft.head_weights
        return Work(num_bytes, flops)

    def prefill(self, batch_size: int, input_len: int) -> Work:
        """All prompts of a batch; the draft follows them. The head computes one row of each."""
        target, draft = self.target, self.draft
        flops = target.prompt_flops(input_len) + 2 * target.head_weights
        num_bytes = target.body_bytes + target.head_bytes
        if draft is not None:
            flops += draft.prompt_flops(input_len)
            num_bytes += draft.body_bytes
        return Work(num_bytes, batch_size * flops)


def decoder_cost(
    config: Mapping[str, Any], dtype_bytes: int, *, is_fp8: bool = False, is_draft: bool = False
) -> DecoderCost | None:
    """Of the text model that `config` describes in transformers' names; None where it is of another kind.

    `is_fp8`: the matrices of the layers have one byte for a weight. `is_draft`: an EAGLE draft of Mistral's, with
    eagle_linear [D, 2 D] and the head of its target.
    """
    if any(config.get(key) for key in _OTHER_KINDS):
        return None
    hidden, head_dim, num_layers = config["hidden_size"], config["head_dim"], config["num_hidden_layers"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    body = num_layers * (attention + 3 * hidden * config["intermediate_size"]) + (2 * hidden**2 if is_draft else 0)
    head = config["vocab_size"] * hidden
    return DecoderCost(
        body_weights=body,
        body_bytes=body * (1 if is_fp8 else dtype_bytes),
        head_weights=head,
        head_bytes=head * dtype_bytes,
        windows=_windows(config, num_layers),
        kv_row_bytes=2 * kv_heads * head_dim * dtype_bytes,
        row_flops=4 * heads * head_dim,
    )


def _windows(config: Mapping[str, Any], num_layers: int) -> tuple[int | None, ...]:
    window: int | None = config.get("sliding_window")
    types = config.get("layer_types") or ["sliding_attention"] * num_layers
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _triangle(num_tokens: int, window: int | None) -> int:
    """Tokens that the rows of a prompt see together.

    >>> _triangle(4, None), _triangle(4, 2)
    (10, 7)
    """
    full = num_tokens if window is None else min(num_tokens, window)
    return full * (full + 1) // 2 + (num_tokens - full) * full
