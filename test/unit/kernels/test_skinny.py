"""Products of few rows against their formulas in float64."""

import pytest
import torch
from torch import Tensor

from slipstream.kernels.skinny import (
    skinny_gate_up,
    skinny_gate_up_reference,
    skinny_linear,
    skinny_linear_reference,
    skinny_norm_gate_up,
    skinny_norm_gate_up_reference,
    skinny_norm_linear,
    skinny_norm_linear_reference,
)
from slipstream.kernels.skinny_configs import SkinnyConfig, default_config

torch.set_num_threads(1)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-2  # large enough to be missed if it were left out
DTYPES = [torch.float32, torch.float16]
LIMITS = {torch.float32: 1e-6, torch.float16: 2**-11}  # half a unit in the last place for one rounding

# rows, outputs, columns, config: tiles read ahead, fewer tiles than that, a last tile and a last block in part
CASES = [
    (1, 8, 64, SkinnyConfig("gemv", 2, 16, 1, 1)),
    (1, 6, 40, SkinnyConfig("gemv", 4, 16, 4, 2)),
    (2, 7, 33, SkinnyConfig("gemv", 2, 16, 4, 3, prefetch=True)),
    (3, 8, 48, SkinnyConfig("gemv", 8, 32, 2, 4)),
    (4, 5, 24, SkinnyConfig("gemv", 1, 8, 1, 2)),
    (4, 20, 96, SkinnyConfig("dot", 16, 32, 4, 3)),
    (5, 20, 90, SkinnyConfig("dot", 16, 32, 4, 3, prefetch=True)),
    (16, 36, 90, SkinnyConfig("dot", 16, 16, 4, 2, split_k=4)),  # 6 tiles: the last share is empty
    (17, 20, 33, SkinnyConfig("dot", 32, 16, 4, 2, split_k=2)),
    (40, 20, 32, SkinnyConfig("dot", 16, 32, 4, 2)),
    (5, 100, 96, SkinnyConfig("tma", 64, 64, 4, 3)),  # blocks and tiles in part
    (33, 70, 104, SkinnyConfig("tma", 64, 32, 4, 2, split_k=2, prefetch=True)),
]
MMA_CASES = [  # one tile, tiles read ahead and not, chunks of a warp, odd columns, more rows
    (1, 16, 32, SkinnyConfig("mma", 16, 32, 1, 1)),
    (3, 20, 200, SkinnyConfig("mma", 16, 64, 2, 2, prefetch=True)),
    (4, 40, 192, SkinnyConfig("mma", 32, 64, 1, 4)),
    (8, 24, 33, SkinnyConfig("mma", 16, 32, 1, 2)),
    (11, 20, 320, SkinnyConfig("mma", 16, 128, 2, 1)),
]
IDS = [f"{rows}x{k}-{config.kind}{config.split_k}" for rows, _, k, config in CASES]


def normal(*shape: int, dtype: torch.dtype, size: float = 1.0, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed + shape[0])) * size
    return values.to(DEVICE, dtype)


def norm_weight(k: int) -> Tensor:
    return normal(k, dtype=torch.float32, seed=3).abs() + 0.5


def exact_norm_linear(h: Tensor, factors: Tensor, weight: Tensor) -> Tensor:
    wide = h.double()
    return wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt() * factors.double() @ weight.double().T


def error(values: Tensor, exact: Tensor) -> float:
    assert values.shape == exact.shape
    return float((values.double() - exact).norm() / exact.norm())


def limit(config: SkinnyConfig, dtype: torch.dtype) -> float:
    """The tensor cores' normed operand is rounded too."""
    return LIMITS[dtype] * (2 if config.kind in ("dot", "tma") else 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "n", "k", "config"), CASES + MMA_CASES)
def test_linear(rows: int, n: int, k: int, config: SkinnyConfig, dtype: torch.dtype) -> None:
    x, weight = normal(rows, k, dtype=dtype), normal(n, k, dtype=dtype, size=k**-0.5)
    exact = x.double() @ weight.double().T
    assert error(skinny_linear(x, weight, config), exact) < LIMITS[dtype]
    assert error(skinny_linear_reference(x, weight), exact) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "n", "k", "config"),
    # the last: one mma for both parts
    [CASES[3], CASES[7], CASES[-1], *MMA_CASES, (5, 24, 96, SkinnyConfig("mma", 8, 32, 1, 2))],
)
def test_gate_up(rows: int, n: int, k: int, config: SkinnyConfig, dtype: torch.dtype) -> None:
    x, weight = normal(rows, k, dtype=dtype), normal(2 * n, k, dtype=dtype, size=k**-0.5)
    gate, up = (x.double() @ weight.double().T).split(n, -1)
    exact = gate / (1 + (-gate).exp()) * up
    assert error(skinny_gate_up(x, weight, config), exact) < 2 * LIMITS[dtype]
    assert error(skinny_gate_up_reference(x, weight), exact) < 2 * LIMITS[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "n", "k", "config"), CASES, ids=IDS)
def test_norm_linear(rows: int, n: int, k: int, config: SkinnyConfig, dtype: torch.dtype) -> None:
    delta, residual = normal(rows, k, dtype=dtype, size=0.1), normal(rows, k, dtype=dtype, size=0.1, seed=1)
    weight = normal(n, k, dtype=dtype, size=k**-0.5)
    before = residual.clone()
    exact_h = (residual.double() + delta.double()).to(dtype)
    exact = exact_norm_linear(exact_h, norm_weight(k), weight)
    y, h = skinny_norm_linear(delta, residual, norm_weight(k), EPS, weight, config)
    assert torch.equal(h, exact_h) and torch.equal(residual, before)
    assert error(y, exact) < limit(config, dtype)
    y, h = skinny_norm_linear_reference(delta, residual, norm_weight(k), EPS, weight)
    assert torch.equal(h, exact_h) and error(y, exact) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "n", "k", "config"), CASES, ids=IDS)
def test_norm_gate_up_without_a_delta(rows: int, n: int, k: int, config: SkinnyConfig, dtype: torch.dtype) -> None:
    residual, weight = normal(rows, k, dtype=dtype), normal(2 * n, k, dtype=dtype, size=k**-0.5)
    gate, up = exact_norm_linear(residual, norm_weight(k), weight).split(n, -1)
    exact = gate / (1 + (-gate).exp()) * up
    y, h = skinny_norm_gate_up(None, residual, norm_weight(k), EPS, weight, config)
    assert h is residual and error(y, exact) < 2 * limit(config, dtype)
    y, h = skinny_norm_gate_up_reference(None, residual, norm_weight(k), EPS, weight)
    assert h is residual and error(y, exact) < 2 * LIMITS[dtype]


@pytest.mark.parametrize("config", [SkinnyConfig("gemv", 2, 16, 2, 2), SkinnyConfig("dot", 16, 16, 4, 2, split_k=2)])
def test_gate_up_with_a_delta_hands_on_the_sum(config: SkinnyConfig) -> None:
    delta, residual = normal(3, 40, dtype=torch.float16), normal(3, 40, dtype=torch.float16, seed=1)
    weight = normal(12, 40, dtype=torch.float16)
    y, h = skinny_norm_gate_up(delta, residual, norm_weight(40), EPS, weight, config)
    assert torch.equal(h, residual + delta) and h is not residual
    assert torch.equal(y, skinny_norm_gate_up(None, h, norm_weight(40), EPS, weight, config)[0])


def test_a_norm_weight_of_the_activations_dtype() -> None:
    residual, weight = normal(2, 40, dtype=torch.float16), normal(6, 40, dtype=torch.float16)
    factors = norm_weight(40).half()
    config = SkinnyConfig("gemv", 2, 16, 2, 2)
    narrow, wide = (skinny_norm_linear(None, residual, f, EPS, weight, config)[0] for f in (factors, factors.float()))
    assert torch.equal(narrow, wide)


def test_shares_of_columns_can_be_added_up_again_and_again() -> None:
    """The count of programs that have finished a block is back at 0."""
    x, weight = normal(5, 64, dtype=torch.float32), normal(40, 64, dtype=torch.float32)
    config = SkinnyConfig("dot", 16, 16, 4, 2, split_k=4)
    first, second = skinny_linear(x, weight, config), skinny_linear(x, weight, config)
    assert torch.equal(first, second) and error(second, x.double() @ weight.double().T) < 1e-6


@pytest.mark.parametrize("config", [SkinnyConfig("gemv", 2, 16, 2, 2), SkinnyConfig("dot", 16, 16, 4, 2, split_k=2)])
def test_a_row_keeps_its_bits_in_other_company(config: SkinnyConfig) -> None:
    delta, residual = normal(4, 72, dtype=torch.float32), normal(4, 72, dtype=torch.float32, seed=1)
    weight = normal(6, 72, dtype=torch.float32)

    def product(rows: slice | list[int]) -> Tensor:
        return skinny_norm_linear(delta[rows], residual[rows], norm_weight(72), EPS, weight, config)[0]

    together = product(slice(None))
    assert torch.equal(product([3, 0, 3]), together[[3, 0, 3]])
    assert torch.equal(product(slice(2, 3)), together[2:3])


def test_an_mma_keeps_a_rows_bits_for_any_number_of_rows_up_to_8() -> None:
    x, weight = normal(8, 96, dtype=torch.float16), normal(32, 96, dtype=torch.float16)
    config = SkinnyConfig("mma", 16, 32, 1, 2)
    together = skinny_gate_up(x, weight, config)
    for rows in (1, 4, 7):
        assert torch.equal(skinny_gate_up(x[:rows], weight, config), together[:rows])


@pytest.mark.parametrize("rows", [1, 4, 5])
def test_without_a_config_the_default_serves(rows: int) -> None:
    x, weight = normal(rows, 48, dtype=torch.float32), normal(6, 48, dtype=torch.float32)
    assert torch.equal(skinny_linear(x, weight), skinny_linear(x, weight, default_config("linear", rows, 6, 48)))
