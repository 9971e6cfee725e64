"""Which kernel and which block sizes a product with few rows takes, from what was measured on the device."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Any, Final, Literal

import torch
import triton

Op = Literal["linear", "norm_linear", "gate_up", "norm_gate_up"]
Kind = Literal["gemv", "dot", "tma", "mma"]

MAX_ROWS: Final = 64
ROW_BUCKETS: Final = (1, 2, 3, 4, 8, 16, 32, MAX_ROWS)  # what tables are measured for
CUBLAS: Final = "cublas"  # the config of an entry where the library was faster
MAX_GEMV_ROWS: Final = 4
MAX_MMA_ROWS: Final = 32
MMA_COLUMNS: Final = 32  # that a warp reads of a row at once
_MAX_TILE = 256  # rows or columns that the accelerator fetches at once
_VECTOR = 8  # elements that a thread reads at once: 16 bytes of bf16


@dataclass(frozen=True)
class SkinnyConfig:
    """How weights [N, K] are divided among programs. Sizes are powers of two.

    gemv: up to 4 rows. A program owns block_n outputs and goes through K in tiles of block_k, which lie in registers;
        best with block_k a multiple of 256 * num_warps. It reads num_stages tiles ahead, the first ones before its
        inputs are ready.
    dot: block_n outputs on the tensor cores, tiles of block_k through shared memory in a pipeline of num_stages;
        `split_k` programs share a row of weights.
    tma: the same with weights that the tensor memory accelerator fetches, whose rows are multiples of 16 bytes; block_n
        is at least the 64 that Hopper's tensor cores take at once.
    mma: up to 32 rows; block_n outputs on the tensor cores, straight from memory into registers; not behind a norm of
        its own. Its warps share tiles of block_k, a multiple of 32 * num_warps; it reads num_stages tiles ahead as a
        gemv does.
    prefetch: whether a program asks the L2 cache, before its inputs are ready, for weights that it will read later:
        all of its rows (gemv), the tiles that fill the pipeline (dot, tma), as many tiles again as it has read (mma).
    """

    kind: Kind
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    split_k: int = 1
    prefetch: bool = False

    def __post_init__(self) -> None:
        for name in ("block_n", "block_k", "num_warps"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"SkinnyConfig.{name} is {value}, but must be a power of two")
        if self.num_stages < 1 or self.split_k < 1:
            raise ValueError(f"SkinnyConfig: num_stages and split_k must be at least 1, not {self}")
        if self.kind == "gemv" and (self.split_k > 1 or self.block_k < _VECTOR):
            raise ValueError(f"SkinnyConfig: a gemv needs split_k 1 and block_k of at least {_VECTOR}, not {self}")
        if self.kind == "mma" and (
            self.split_k > 1 or self.block_n < 8 or self.block_k % (MMA_COLUMNS * self.num_warps)
        ):
            raise ValueError(
                f"SkinnyConfig: an mma needs split_k 1, block_n of at least 8 and block_k a multiple of "
                f"{MMA_COLUMNS} * num_warps, not {self}"
            )
        if self.kind in ("dot", "tma") and self.block_k < 16:
            raise ValueError(f"SkinnyConfig: a {self.kind} needs block_k of at least 16, not {self}")
        if self.kind == "tma" and not 64 <= self.block_n <= _MAX_TILE >= self.block_k:
            raise ValueError(
                f"SkinnyConfig: a tma needs block_n from 64 on, neither size above {_MAX_TILE}, not {self}"
            )


Table = Mapping[tuple[str, int, int, int], SkinnyConfig | None]  # by op, n, k, bucket of rows; None: cuBLAS


def skinny_config(op: Op, num_rows: int, weight: torch.Tensor) -> SkinnyConfig | None:
    """The best config for activations [num_rows, K] and `weight` [N, K]; None: take cuBLAS and unfused kernels.

    The device's table decides, which was measured with values of two bytes: others would not fit into what its configs
    take. A shape that it does not name goes to the kernel that needs no tuning up to 4 rows, to cuBLAS above. Where a
    product behind a norm is None, ask again for the one without: "linear" or "gate_up".
    """
    return _config(op, num_rows, *weight.shape, weight.device, weight.dtype)


@lru_cache(maxsize=4096)
def _config(op: Op, num_rows: int, n: int, k: int, device: torch.device, dtype: torch.dtype) -> SkinnyConfig | None:
    table = _device_table(_device_name(device)) if dtype.itemsize == 2 else {}
    return choose_config(table, op, num_rows, n, k)


def choose_config(table: Table, op: Op, num_rows: int, n: int, k: int) -> SkinnyConfig | None:
    """skinny_config() for a table and weights [n, k]; n is 2I of gate and up: the entry with the fewest rows that are
    enough.

    >>> choose_config({("linear", 64, 32, 8): None}, "linear", 5, 64, 32) is None
    True
    """
    for bucket in ROW_BUCKETS:
        if bucket >= num_rows and (op, n, k, bucket) in table:
            return table[op, n, k, bucket]
    is_measured = any(entry[1:3] == (n, k) for entry in table)
    return None if is_measured or num_rows > MAX_GEMV_ROWS else default_config(op, num_rows, n, k)


@lru_cache(maxsize=4096)
def default_config(op: Op, num_rows: int, n: int, k: int) -> SkinnyConfig:
    """A config that works everywhere and is good on Hopper for the sizes of usual models."""
    if num_rows > MAX_GEMV_ROWS:
        return SkinnyConfig("dot", 32, min(128, max(16, triton.next_power_of_2(k))), 4, 4)
    block_k = min(1024, max(_VECTOR, triton.next_power_of_2(k)))
    num_warps = max(1, min(4, block_k // 256))
    block_n = 2 if num_rows == 1 and op == "linear" else 4  # the more outputs, the less work on inputs for each
    if op in ("gate_up", "norm_gate_up"):
        block_n //= 2
    return SkinnyConfig("gemv", block_n, block_k, num_warps, min(2, -(-k // block_k)))


def table_name(device_name: str) -> str:
    """The file of a device's table.

    >>> table_name("NVIDIA H200")
    'nvidia_h200.json'
    """
    return re.sub(r"[^a-z0-9]+", "_", device_name.lower()).strip("_") + ".json"


def parse_table(text: str) -> Table:
    """The table in a JSON text {"device": ..., "entries": [{"op", "n", "k", "rows", "config", ...}, ...]}, where config
    is "cublas" or the fields of a SkinnyConfig. What else an entry says (times) is for the reader.
    """
    return {
        (entry["op"], entry["n"], entry["k"], entry["rows"]): _parse_config(entry["config"])
        for entry in json.loads(text)["entries"]
    }


def _parse_config(config: Any) -> SkinnyConfig | None:
    return None if config == CUBLAS else SkinnyConfig(**config)


@cache
def _device_table(device_name: str) -> Table:
    file = resources.files(__package__) / "tuning" / table_name(device_name)
    return parse_table(file.read_text("utf-8")) if file.is_file() else {}


@cache
def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
