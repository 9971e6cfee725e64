"""What a GPU's memory is for, worked out before anything is loaded: weights, everything a step needs, and KV pages from
what is left. On a CPU, where memory is not bounded so sharply, see size_pool().
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from slipstream.attention.layer import AttentionLayer
from slipstream.errors import ConfigError
from slipstream.worker.kv_pool import PoolLimits, PoolSize, asked_pages, gib, useful_pages
from slipstream.worker.memory import DeviceUse, Memory, device_use

MIB = 2**20
MARGIN_BYTES = 512 * MIB  # of free memory that is never given away: rounding and splinters of torch's allocator
LIBRARY_BYTES = 256 * MIB  # cuBLAS takes 64 MiB of workspace, the rest is code that CUDA loads at its first use
# fp32 tensors [rows, vocab] that the host-driven sampler holds at once, at its worst a nucleus that has to be sorted:
# the logits, their raw copy for logprobs, those divided by the temperature, their softmax, a copy of its long rows,
# sorted values, int64 indices (two), their running sum, and three that the sort takes for itself.
SAMPLER_COPIES = 12
_SAMPLER_SLOT_BYTES = 64  # temperature, key, filters and penalties of one slot
_FP32 = 4
_LENGTH_FLAGS = "--max-running-requests, --context-length"
_ROW_FLAGS = "--max-running-requests, --speculative-num-steps"


@dataclass(frozen=True)
class Part:
    """One line of the table. `flags`: what makes it smaller."""

    name: str
    num_bytes: int
    flags: str = ""


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a target or a draft. Widths are values of one row in its widest layer."""

    weight_bytes: int
    kv_bytes_per_token: int
    item_bytes: int  # of activations
    hidden_size: int
    intermediate_size: int  # of the widest feed-forward part that a row goes through
    query_width: int  # heads * head_dim
    kv_width: int  # keys and values, or the latent vector
    value_width: int  # what attention returns
    is_fused: bool = True  # norms and rotations run in one kernel each, without tensors in fp32
    is_fp8: bool = False  # some matrices are stored in FP8

    @staticmethod
    def of(
        text_config: Mapping[str, Any],
        layers: Sequence[AttentionLayer],
        *,
        weight_bytes: int,
        kv_bytes_per_token: int,
        item_bytes: int,
        is_fp8: bool,
    ) -> "ModelFacts":
        """`text_config` is CheckpointSpec.text_config. Layers with a latent cache have no fused kernels."""
        expert_size = text_config.get("moe_intermediate_size") or 0
        return ModelFacts(
            weight_bytes,
            kv_bytes_per_token,
            item_bytes,
            hidden_size=text_config["hidden_size"],
            intermediate_size=max(
                text_config.get("intermediate_size") or 0, expert_size * (text_config.get("n_shared_experts") or 1)
            ),
            query_width=max(layer.num_heads * layer.head_dim for layer in layers),
            kv_width=max(layer.num_kv_heads * layer.head_dim * layer.cache_shape[0] for layer in layers),
            value_width=max(layer.num_heads * layer.value_dim for layer in layers),
            is_fused=not any(layer.latent_dim for layer in layers),
            is_fp8=is_fp8,
        )

    def row_bytes(self) -> int:
        """What one row of a forward pass takes while a layer runs.

        In the dtype of activations: the residual, what is to be added to it, the normed row and a part's output (four
        times hidden); the fused projection and the turned queries; attention's output; gate, up and their product.
        Attention and feed-forward part do not run at the same time, but torch's allocator does not join the memory that
        one gave back into what the other asks for, so both count.
        In fp32, unless kernels are fused: two rows of a norm, four of queries and keys while they are turned. Products
        in FP8 divide their input in fp32, round it to one byte and widen that again to two.
        """
        own = 4 * self.hidden_size + 2 * self.query_width + self.kv_width + self.value_width
        total = self.item_bytes * (own + 3 * self.intermediate_size)
        if not self.is_fused:
            total += _FP32 * (2 * self.hidden_size + 4 * (self.query_width + self.kv_width))
        if self.is_fp8:
            total += (_FP32 + 1 + 2) * max(self.hidden_size, self.intermediate_size, self.value_width)
        return total

    def widened_bytes(self) -> int:
        """A product with an FP8 matrix without a kernel of its own widens it first: the largest one in two bytes."""
        widest = max(2 * self.intermediate_size, self.query_width + self.kv_width)
        return 2 * widest * self.hidden_size if self.is_fp8 else 0


@dataclass(frozen=True)
class ImageFacts:
    """Sizes of an image encoder, which takes one image after the other."""

    num_patches: int  # of the largest image
    hidden_size: int
    intermediate_size: int
    patch_values: int  # 3 * patch_size^2

    @staticmethod
    def of(vision_config: Mapping[str, Any], max_size: int) -> "ImageFacts":
        """`vision_config` is that of CheckpointSpec.config, `max_size` the longest side in pixels."""
        side = -(-max_size // vision_config["patch_size"])
        return ImageFacts(
            side * side,
            vision_config["hidden_size"],
            vision_config["intermediate_size"],
            3 * vision_config["patch_size"] ** 2,
        )

    def num_bytes(self, item_bytes: int) -> int:
        """As ModelFacts.row_bytes() without fused kernels; pixels are in fp32 three times: scaled, normalised, cut."""
        hidden = self.hidden_size
        row = item_bytes * (8 * hidden + 3 * self.intermediate_size) + _FP32 * (2 * hidden + 4 * 2 * hidden)
        return self.num_patches * (row + 3 * _FP32 * self.patch_values)


@dataclass(frozen=True)
class MemoryFacts:
    """What decides how much memory a worker needs, as plain numbers.

    `chunk_rows` prompt tokens and `decode_rows` = slots * (K + 1) rows may meet in one step.
    """

    target: ModelFacts
    draft: ModelFacts | None
    vocab_size: int
    pages_per_slot: int  # entries of one slot's page table
    chunk_rows: int
    decode_rows: int
    rejection_sampling: bool = False
    images: ImageFacts | None = None
    workspace_bytes: int = 0  # of attention backends
    graph_bytes: int = 0  # that CUDA graphs keep beside logits and activations: an estimate
    library_bytes: int = LIBRARY_BYTES


@dataclass(frozen=True)
class MemoryPlan:
    """`parts` are everything, the KV pages last. `memory` is the device's as it was before anything was loaded."""

    pool: PoolSize
    parts: tuple[Part, ...]
    memory: Memory

    @property
    def planned_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)

    def table(self) -> str:
        """A line for each part, and their sum."""
        together = Part(f"together, of {gib(self.memory.total_bytes)}", self.planned_bytes)
        return "\n".join(_lines([*self.parts, together]))


def plan_memory(limits: PoolLimits, facts: MemoryFacts, memory: Memory) -> MemoryPlan:
    """Divide a GPU's memory. `memory` is the device's before anything is loaded.

    Everything together may take --mem-fraction-static of the device, and what is free less a margin. KV pages get what
    is left, but no more than all running requests can fill; or exactly --max-total-tokens, which counts against free
    memory alone.
    Raises ConfigError, with every part in GiB and the flags that change it, where they do not fit.
    """
    others = [part for part in _parts(limits, facts) if part.num_bytes]
    page_bytes = limits.page_size * _kv_bytes_per_token(facts)
    other_bytes = sum(part.num_bytes for part in others)
    free_bytes = memory.free_bytes - MARGIN_BYTES - other_bytes
    share_bytes = int(limits.mem_fraction_static * memory.total_bytes) - other_bytes
    if limits.max_total_tokens is not None:
        num_pages, room_bytes = asked_pages(limits.max_total_tokens, limits.page_size), free_bytes
        why = f"--max-total-tokens {limits.max_total_tokens}"
    else:
        room_bytes = min(free_bytes, share_bytes)
        num_pages = min(useful_pages(limits) + 1, max(room_bytes // page_bytes, 2))  # one of them is the sink
        why = f"all that {limits.max_running_requests} requests of {limits.context_length} tokens can fill"
        if num_pages <= useful_pages(limits):
            share = f"--mem-fraction-static {limits.mem_fraction_static}"
            why = f"what {'free memory' if room_bytes == free_bytes else share} leaves"
    pages = Part("KV pages", num_pages * page_bytes, "--mem-fraction-static, --max-total-tokens")
    if pages.num_bytes > room_bytes:
        raise ConfigError(_does_not_fit(limits, [*others, pages], memory, room_bytes))
    weight_bytes = sum(model.weight_bytes for model in _models(facts))
    reason = (
        f"{gib(pages.num_bytes)}, {why} beside {gib(weight_bytes)} of weights and "
        f"{gib(other_bytes - weight_bytes)} of buffers"
    )
    return MemoryPlan(PoolSize(num_pages, reason), (*others, pages), memory)


def measured_table(plan: MemoryPlan, device: torch.device) -> str:
    """One line for the log: what was planned, and what is taken now that graphs are captured."""
    return compare(plan, device_use(device))


def compare(plan: MemoryPlan, use: DeviceUse) -> str:
    """As measured_table(), of a measurement."""
    taken = plan.memory.free_bytes - use.free_bytes
    line = (
        f"GPU memory: {gib(plan.planned_bytes)} planned, {gib(taken)} taken "
        f"({gib(use.allocated_bytes)} in tensors, {gib(use.reserved_bytes)} reserved for them), "
        f"{gib(use.free_bytes)} of {gib(use.total_bytes)} free"
    )
    if taken > plan.planned_bytes + MARGIN_BYTES:
        return (
            f"{line}; {gib(taken - plan.planned_bytes)} more than planned: lower --mem-fraction-static if it runs out"
        )
    return line


def _models(facts: MemoryFacts) -> list[ModelFacts]:
    return [facts.target] if facts.draft is None else [facts.target, facts.draft]


def _kv_bytes_per_token(facts: MemoryFacts) -> int:
    return sum(model.kv_bytes_per_token for model in _models(facts))


def _parts(limits: PoolLimits, facts: MemoryFacts) -> Iterable[Part]:
    """Everything but the KV pages."""
    yield Part("weights", facts.target.weight_bytes)
    if facts.draft is not None:
        yield Part("draft's weights", facts.draft.weight_bytes)
    yield Part("slots", _slot_bytes(limits, facts), _LENGTH_FLAGS)
    yield Part(f"logits and sampling of {facts.decode_rows} rows", _logit_bytes(limits, facts), _ROW_FLAGS)
    rows = facts.chunk_rows + facts.decode_rows
    yield Part(f"activations of {rows} rows", _activation_bytes(rows, facts), "--chunked-prefill-size")
    if facts.images is not None:
        yield Part("image encoder", _image_bytes(facts, facts.images))
    yield Part("attention workspaces", facts.workspace_bytes, "--attention-backend triton")
    yield Part("CUDA graphs", facts.graph_bytes, "--disable-cuda-graph")
    yield Part("CUDA libraries", facts.library_bytes)


def _slot_bytes(limits: PoolLimits, facts: MemoryFacts) -> int:
    """Page table, lengths, prompt (int64) and sampling parameters of each slot and of the dummy slot, what the draft
    keeps of each slot's last row (two hidden states), and histories of tokens (int32) for penalties.
    """
    num_slots = limits.max_running_requests + 1
    of_slot = facts.pages_per_slot * 4 + 2 * 8 + limits.context_length * 8 + _SAMPLER_SLOT_BYTES
    if facts.draft is not None:
        of_slot += 2 * facts.draft.hidden_size * facts.target.item_bytes
    return num_slots * of_slot + facts.vocab_size * (8 + 4 * _histories(limits.max_running_requests))


def _histories(num_slots: int) -> int:
    """Rows of histories while their tensor grows for the last time: the new one, and the old one half its size.

    >>> _histories(4), _histories(256), _histories(257)
    (4, 384, 768)
    """
    rows = 4
    while rows < num_slots:
        rows *= 2
    return rows if rows == 4 else rows + rows // 2


def _logit_bytes(limits: PoolLimits, facts: MemoryFacts) -> int:
    """Logits of the largest decode step in the dtype of activations, the draft's of one level, fp32 tensors of the
    host-driven sampler, and what drafts were drawn from where rejection sampling needs it.
    """
    values = facts.decode_rows * (facts.target.item_bytes + SAMPLER_COPIES * _FP32)
    if facts.draft is not None:
        values += limits.max_running_requests * facts.draft.item_bytes
    if facts.rejection_sampling:
        values += (facts.decode_rows - limits.max_running_requests) * _FP32
    return values * facts.vocab_size


def _activation_bytes(rows: int, facts: MemoryFacts) -> int:
    """The draft runs after the target and finds the memory that it has given back; beside it stay the target's hidden
    states and the draft's input, which is twice as wide.
    """
    target = rows * facts.target.row_bytes() + facts.target.widened_bytes()
    if facts.draft is None:
        return target
    draft, hidden_bytes = facts.draft, facts.target.hidden_size * facts.target.item_bytes
    own = rows * (draft.row_bytes() + 2 * draft.hidden_size * draft.item_bytes) + draft.widened_bytes()
    return max(target, own) + rows * hidden_bytes


def _image_bytes(facts: MemoryFacts, images: ImageFacts) -> int:
    """The encoder at work, and features for the rows of two chunks: of a prompt in pieces, and of those beside it."""
    features = 2 * facts.chunk_rows * facts.target.hidden_size * facts.target.item_bytes
    return images.num_bytes(facts.target.item_bytes) + features


def _does_not_fit(limits: PoolLimits, parts: Sequence[Part], memory: Memory, room_bytes: int) -> str:
    share = int(limits.mem_fraction_static * memory.total_bytes)
    is_asked = limits.max_total_tokens is not None
    is_bound_by_share = not is_asked and share < memory.free_bytes - MARGIN_BYTES
    missing = gib(parts[-1].num_bytes - room_bytes)
    given = (
        f"--mem-fraction-static {limits.mem_fraction_static} gives {gib(share)}"
        if is_bound_by_share
        else f"{gib(memory.free_bytes)} are free, of which {gib(MARGIN_BYTES)} stay free"
    )
    remedies = "raise --mem-fraction-static, or " if is_bound_by_share else "free some memory, or "
    least = "" if is_asked else f" (the least, two pages of {limits.page_size} tokens)"
    return "\n".join(
        [
            f"{missing} too little memory: of {gib(memory.total_bytes)}, {given}, and this does not fit{least}:",
            *_lines(parts),
            f"{remedies}lower the flags beside the largest lines, or choose a smaller model",
        ]
    )


def _lines(parts: Sequence[Part]) -> list[str]:
    width = max(len(part.name) for part in parts)
    numbers = [f"{part.num_bytes / 2**30:8.2f} GiB" for part in parts]
    return [
        f"  {part.name:<{width}}  {number}{f'  {part.flags}' if part.flags else ''}"
        for part, number in zip(parts, numbers, strict=True)
    ]
