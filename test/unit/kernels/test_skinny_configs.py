"""How a config is found: exact entry, bucket of rows, default, cuBLAS."""

import json
from importlib import resources
from typing import get_args

import pytest
import torch

from slipstream.kernels import skinny_configs
from slipstream.kernels.skinny_configs import (
    ROW_BUCKETS,
    Op,
    SkinnyConfig,
    choose_config,
    default_config,
    parse_table,
    skinny_config,
    table_name,
)

GEMV = {"kind": "gemv", "block_n": 2, "block_k": 1024, "num_warps": 4, "num_stages": 3}
DOT = {"kind": "dot", "block_n": 64, "block_k": 128, "num_warps": 4, "num_stages": 4, "split_k": 2, "prefetch": True}


def entry(rows: int, config: object, n: int = 64) -> dict[str, object]:
    return {"op": "linear", "n": n, "k": 32, "rows": rows, "config": config, "us": 1.5}


TABLE = parse_table(json.dumps({"entries": [entry(1, GEMV), entry(2, "cublas"), entry(8, DOT), entry(16, "cublas")]}))


@pytest.mark.parametrize(("rows", "config"), [(1, GEMV), (3, DOT), (5, DOT), (8, DOT)])
def test_an_entry_serves_the_rows_up_to_its_own(rows: int, config: dict[str, object]) -> None:
    assert choose_config(TABLE, "linear", rows, 64, 32) == SkinnyConfig(**config)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [2, 9, 16, 17, 32, 33, 1000])
def test_cublas_by_entry_or_beyond_the_last_one(rows: int) -> None:
    assert choose_config(TABLE, "linear", rows, 64, 32) is None


@pytest.mark.parametrize("op", get_args(Op))
def test_a_shape_that_was_not_measured_takes_the_default_up_to_four_rows(op: Op) -> None:
    assert choose_config(TABLE, op, 3, 128, 32) == default_config(op, 3, 128, 32)
    assert choose_config(TABLE, op, 4, 64, 16) == default_config(op, 4, 64, 16)
    assert choose_config(TABLE, op, 5, 128, 32) is None


def test_a_shape_that_was_measured_for_another_operation_takes_cublas() -> None:
    assert choose_config(TABLE, "norm_linear", 2, 64, 32) is None
    assert choose_config(TABLE, "gate_up", 1, 64, 32) is None


@pytest.mark.parametrize("op", get_args(Op))
@pytest.mark.parametrize("k", [1, 33, 192, 512, 4096, 5120, 14336, 32768])
def test_defaults_keep_to_the_kernels_limits(op: Op, k: int) -> None:
    for rows in range(1, 65):
        config = default_config(op, rows, 4096, k)
        assert config.kind == ("gemv" if rows <= 4 else "dot")
        assert config.num_warps <= 8 and config.block_n * config.block_k <= 8192


def test_a_device_without_a_table_has_defaults() -> None:
    weight = torch.empty(64, 32)
    assert skinny_config("linear", 1, weight) == default_config("linear", 1, 64, 32)
    assert skinny_config("linear", 5, weight) is None


def test_a_table_is_for_values_of_two_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it names may take all of the shared memory."""
    monkeypatch.setattr(skinny_configs, "_device_name", lambda device: "NVIDIA H200")
    skinny_configs._config.cache_clear()
    kinds = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        weight = torch.empty(28672, 4096, dtype=dtype, device="meta")
        config = skinny_config("gate_up", 33, weight)
        kinds.append(config and config.kind)
    skinny_configs._config.cache_clear()
    assert kinds == ["tma", "tma", None]


@pytest.mark.parametrize(
    "change",
    [
        {"block_n": 3},
        {"num_warps": 0},
        {"num_stages": 0},
        {"split_k": 2},
        {"block_k": 4},
        {"kind": "dot", "block_k": 8},
        {"kind": "mma", "block_n": 4},
        {"kind": "mma", "block_n": 16, "block_k": 64},
        {"kind": "tma", "block_n": 32, "block_k": 64},
        {"kind": "tma", "block_n": 64, "block_k": 512},
    ],
)
def test_impossible_configs_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="SkinnyConfig"):
        SkinnyConfig(**GEMV | change)  # type: ignore[arg-type]


def test_the_tables_in_the_package() -> None:
    folder = resources.files("slipstream.kernels") / "tuning"
    files = [file for file in folder.iterdir() if file.name.endswith(".json")]
    assert table_name("NVIDIA H200") in {file.name for file in files}
    for file in files:
        content = json.loads(file.read_text("utf-8"))
        assert file.name == table_name(content["device"])
        table = parse_table(file.read_text("utf-8"))
        assert len(table) == len(content["entries"]), f"{file.name} has two entries for one case"
        assert {op for op, *_ in table} <= set(get_args(Op)) and {key[3] for key in table} <= set(ROW_BUCKETS)
