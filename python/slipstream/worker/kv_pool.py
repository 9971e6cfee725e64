"""The KV cache: how many pages there are, why that many, and their tensors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.attention.layer import AttentionLayer
from slipstream.errors import ConfigError
from slipstream.worker.memory import Memory

GIB = 2**30


@dataclass(frozen=True)
class PoolSize:
    """`num_pages` counts the sink page 0. `reason` is a clause for the person at the terminal."""

    num_pages: int
    reason: str


@dataclass(frozen=True)
class PoolLimits:
    """What bounds the pool, as configured."""

    page_size: int
    context_length: int
    max_running_requests: int
    max_total_tokens: int | None
    mem_fraction_static: float


def kv_bytes_per_token(layers: Sequence[AttentionLayer], dtype: torch.dtype) -> int:
    """Bytes that one token takes in the caches of all layers."""
    return sum(math.prod(layer.cache_shape) for layer in layers) * dtype.itemsize


def size_pool(limits: PoolLimits, bytes_per_token: int, weight_bytes: int, memory: Memory) -> PoolSize:
    """How many pages to make on a CPU, before anything is loaded. `memory` is the device's, still without the weights.
    For a GPU see plan_memory(), which counts everything else as well.

    Either as many tokens as --max-total-tokens says, or what --mem-fraction-static of the device leaves beside the
    weights, but no more than all running requests can fill.
    Raises ConfigError when they do not fit, or when not even one page does.
    """
    page_bytes = limits.page_size * bytes_per_token
    free_bytes = memory.free_bytes - weight_bytes
    if limits.max_total_tokens is not None:
        return _as_asked(limits.max_total_tokens, limits.page_size, page_bytes, weight_bytes, free_bytes)
    share_bytes = int(limits.mem_fraction_static * memory.total_bytes)
    budget_bytes = min(share_bytes - weight_bytes, free_bytes)
    num_fitting = budget_bytes // page_bytes - 1  # the sink takes one
    if num_fitting < 1:
        flag = "raise --mem-fraction-static" if free_bytes > share_bytes - weight_bytes else "free some memory"
        raise ConfigError(
            f"no room for KV pages: of {gib(memory.total_bytes)}, --mem-fraction-static {limits.mem_fraction_static} "
            f"gives {gib(share_bytes)} and {gib(memory.free_bytes)} are free, but the weights take "
            f"{gib(weight_bytes)} and two pages of {limits.page_size} tokens {gib(2 * page_bytes)}; "
            f"{flag} or choose a smaller model"
        )
    num_useful = useful_pages(limits)
    if num_useful <= num_fitting:
        return PoolSize(
            num_useful + 1,
            f"all that {limits.max_running_requests} requests of {limits.context_length} "
            f"tokens can fill, {gib((num_useful + 1) * page_bytes)}",
        )
    bound = "free memory" if budget_bytes == free_bytes else f"--mem-fraction-static {limits.mem_fraction_static}"
    return PoolSize(num_fitting + 1, f"what {bound} leaves beside {gib(weight_bytes)} of weights, {gib(budget_bytes)}")


def useful_pages(limits: PoolLimits) -> int:
    """As many as all running requests together can fill."""
    return limits.max_running_requests * -(-limits.context_length // limits.page_size)


def asked_pages(max_total_tokens: int, page_size: int) -> int:
    """As many as --max-total-tokens asks for, and the sink."""
    if max_total_tokens < page_size:
        raise ConfigError(f"--max-total-tokens is {max_total_tokens}, less than one page of {page_size} tokens")
    return max_total_tokens // page_size + 1


def allocate_caches(
    layers: Sequence[AttentionLayer], num_pages: int, page_size: int, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """One tensor [num_pages, page_size, *cache_shape] for each layer; see AttentionLayer.

    Zeros cost nothing on a CPU: the system hands out the memory at the first write.
    """
    return [torch.zeros(num_pages, page_size, *layer.cache_shape, dtype=dtype, device=device) for layer in layers]


def _as_asked(max_total_tokens: int, page_size: int, page_bytes: int, weight_bytes: int, free_bytes: int) -> PoolSize:
    num_pages = asked_pages(max_total_tokens, page_size)
    if num_pages * page_bytes > free_bytes:
        raise ConfigError(
            f"--max-total-tokens {max_total_tokens} needs {gib(num_pages * page_bytes)} of KV pages, but "
            f"{gib(max(free_bytes, 0))} are free beside {gib(weight_bytes)} of weights; lower it"
        )
    return PoolSize(num_pages, f"--max-total-tokens {max_total_tokens}, {gib(num_pages * page_bytes)}")


def gib(num_bytes: int) -> str:
    """For the person at the terminal.

    >>> gib(3 * 2**29), gib(2**20)
    ('1.50 GiB', '0.00098 GiB')
    """
    value = num_bytes / GIB
    return f"{value:.2f} GiB" if abs(value) >= 0.1 or value == 0 else f"{value:.2g} GiB"
