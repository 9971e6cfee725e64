"""Causal attention of large prefill chunks with FlashInfer: FlashAttention-3 on Hopper, FlashAttention-2 elsewhere.

FlashInfer compiles a kernel for each dtype and head size when it is first planned (a minute with nvcc and ninja on 16
cores), and keeps it in $FLASHINFER_WORKSPACE_BASE/.cache/flashinfer (default: the home directory). The package
flashinfer-jit-cache brings them compiled. So warm_up() belongs before the server is ready.
"""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slipstream.attention.layer import AttentionLayer
from slipstream.errors import ConfigError
from slipstream.log import get_logger

logger = get_logger(__name__)

_HEAD_DIMS = (64, 128, 256)
_DTYPES = (torch.bfloat16, torch.float16)
# No kernel here splits keys over programs, so that none needs room for partial results; an empty buffer is refused.
_FLOAT_WORKSPACE_BYTES = 2**20
_INT_WORKSPACE_BYTES = 2**23  # what each wrapper allocates for its schedule, on the device and again in pinned memory
_STEPS_IN_FLIGHT = 3  # schedules in rotation: the host plans a step while up to two wait for the device
_WARM_UP_ROWS = 256


@dataclass(frozen=True)
class _Kind:
    """What a schedule and a kernel are made for; layers of one kind share both."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    dtype: torch.dtype


@dataclass
class _Schedule:
    """A FlashInfer wrapper, and what tells that its pinned buffer has been copied and may be written again."""

    wrapper: Any  # BatchPrefillWithRaggedKVCacheWrapper
    copied: torch.cuda.Event
    step: int = 0  # for which it was planned; 0: none


class FlashInferPrefill:
    """Implements LargePrefill for layers without a window, or with one that no request of a step is longer than.

    FlashInfer's plan() needs the lengths on the host and copies a schedule to the device: this runs eagerly, never in
    a CUDA graph. The FlashAttention-3 kernel loads keys and values in tiles and weighs those of the next request by 0:
    were its values NaN or infinite, the last rows of the request before would become NaN too.
    """

    def __init__(self, min_rows: int = 512, kernel: str | None = None) -> None:
        """`kernel` is "fa3" or "fa2"; None: the fastest that the device has."""
        self.min_rows = min_rows
        self._kernel = kernel
        self._schedules: dict[_Kind, list[_Schedule]] = {}
        self._workspace: Tensor | None = None
        self._step = self._longest = 0
        self._row_starts = self._key_starts = torch.zeros(1, dtype=torch.int32)

    @classmethod
    def available(cls, layers: Sequence[AttentionLayer], dtype: torch.dtype, device: torch.device) -> str | None:
        """None, or one clause that says what is missing."""
        if device.type != "cuda":
            return "needs a CUDA device"
        if dtype not in _DTYPES:
            return f"takes bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
        if any(layer.latent_dim for layer in layers):
            return "has no latent attention (MLA)"
        if others := sorted({layer.head_dim for layer in layers} - set(_HEAD_DIMS)):
            return f"takes heads of 64, 128 or 256 values, not {others[0]}"
        if (capability := torch.cuda.get_device_capability(device)) < (8, 0):
            return "needs a GPU of compute capability 8.0 or more; this one has {}.{}".format(*capability)
        if find_spec("flashinfer") is None:
            return "needs flashinfer, which is not installed (pip install flashinfer-python)"
        if find_spec("flashinfer_jit_cache") is None and (tool := _missing_compiler()):
            return f"compiles its kernels with {tool}, which is not on the PATH (or: pip install flashinfer-jit-cache)"
        return None

    @classmethod
    def workspace_bytes(cls, layers: Sequence[AttentionLayer] = ()) -> int:
        """Device memory beside queries, keys, values and outputs: what all kinds of `layers` take, or one kind."""
        kinds = {_kind(layer, torch.bfloat16) for layer in layers}
        return _FLOAT_WORKSPACE_BYTES + max(len(kinds), 1) * _STEPS_IN_FLIGHT * _INT_WORKSPACE_BYTES

    def warm_up(self, layers: Sequence[AttentionLayer], dtype: torch.dtype, device: torch.device) -> None:
        """Compile (or load) the kernels of all layers, allocate the workspace, run each kernel once.

        Raises ConfigError where a kernel does not compile.
        """
        for kind, layer in {_kind(layer, dtype): layer for layer in layers}.items():
            name = f"FlashInfer's {self._kernel_for(device)} kernel for heads of {kind.head_dim}"
            logger.info("loading %s; if it is not compiled yet this takes a minute or more", name)
            begin = time.monotonic()
            q, k = (torch.zeros(_WARM_UP_ROWS, n, kind.head_dim, dtype=dtype, device=device) for n in _heads(layer))
            try:
                for _ in range(_STEPS_IN_FLIGHT):
                    self.plan([_WARM_UP_ROWS], [_WARM_UP_ROWS], device)
                    self.run(replace(layer, window=None), q, k, k)
            except RuntimeError as error:
                raise ConfigError(
                    f"{name} cannot be compiled or run; repair that or choose --attention-backend triton: {error}"
                ) from error
            torch.cuda.synchronize(device)
            logger.info("%s: ready in %.1f s", name, time.monotonic() - begin)

    def plan(self, num_rows: Sequence[int], kv_lens: Sequence[int], device: torch.device) -> None:
        """Take the step's requests: num_rows[r] rows at the end of kv_lens[r] keys. See LargePrefill.plan."""
        # Pinned, so that neither this nor the wrapper's copy waits for the device.
        self._row_starts, self._key_starts = (
            torch.tensor(list(accumulate(counts, initial=0)), dtype=torch.int32, pin_memory=device.type == "cuda")
            for counts in (num_rows, kv_lens)
        )
        self._step += 1
        self._longest = max(kv_lens)

    def run(self, layer: AttentionLayer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, heads, head_dim], k and v [N, kv heads, head_dim] -> [T, heads * head_dim]. See LargePrefill.run.

        Strides between tokens and between heads may be any multiple of 16 bytes.
        """
        assert layer.window is None or layer.window >= self._longest, f"{layer} with {self._longest} keys"
        wrapper = self._planned(_kind(layer, q.dtype), q.device)
        out: Tensor = wrapper.run(q, k, v, enable_pdl=False)
        return out.view(q.shape[0], -1)

    def _planned(self, kind: _Kind, device: torch.device) -> Any:
        """The wrapper for layers of this kind: the step's first such layer plans it.

        The schedule goes through a pinned buffer of the wrapper, which the device may not have read when the host
        plans the next step: hence the rotation, and the wait for what was copied _STEPS_IN_FLIGHT steps ago.
        """
        if kind not in self._schedules:
            self._schedules[kind] = self._make_schedules(device)
        schedule = self._schedules[kind][self._step % _STEPS_IN_FLIGHT]
        if schedule.step == self._step:
            return schedule.wrapper
        schedule.copied.synchronize()
        schedule.wrapper.plan(
            self._row_starts,
            self._key_starts,
            kind.num_heads,
            kind.num_kv_heads,
            kind.head_dim,
            causal=True,
            sm_scale=kind.scale,
            q_data_type=kind.dtype,
            disable_split_kv=True,
        )
        schedule.copied.record()
        schedule.step = self._step
        return schedule.wrapper

    def _make_schedules(self, device: torch.device) -> list[_Schedule]:
        if self._workspace is None:
            self._workspace = torch.empty(_FLOAT_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        wrapper = import_module("flashinfer.prefill").BatchPrefillWithRaggedKVCacheWrapper
        kernel = self._kernel_for(device)
        return [
            _Schedule(wrapper(self._workspace, "NHD", backend=kernel), torch.cuda.Event())  # type: ignore[no-untyped-call]
            for _ in range(_STEPS_IN_FLIGHT)
        ]

    def _kernel_for(self, device: torch.device) -> str:
        """FlashAttention-3 is written for Hopper's instructions: it runs on no older and no newer GPU."""
        return self._kernel or ("fa3" if torch.cuda.get_device_capability(device)[0] == 9 else "fa2")


def _kind(layer: AttentionLayer, dtype: torch.dtype) -> _Kind:
    return _Kind(layer.num_heads, layer.num_kv_heads, layer.head_dim, layer.scale, dtype)


def _heads(layer: AttentionLayer) -> tuple[int, int]:
    return layer.num_heads, layer.num_kv_heads


def _missing_compiler() -> str | None:
    """Of the two programs that FlashInfer calls to compile a kernel, the one that is not there."""
    if shutil.which("ninja") is None:
        return "ninja"
    toolkit = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return None if shutil.which("nvcc") or (Path(toolkit) / "bin" / "nvcc").exists() else "nvcc"
