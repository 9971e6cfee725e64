"""Residual add and norm against the formula in fp64."""

import pytest
import torch
from torch import Tensor

from slipstream.kernels.launch import IS_INTERPRETED
from slipstream.kernels.norm import MAX_SIZE, add_rms_norm, add_rms_norm_reference
from support.one_thread import for_tiny_models  # noqa: F401

DEVICE = "cpu" if IS_INTERPRETED else "cuda"
EPS = 1e-5
DTYPES = (torch.float32, torch.float16)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def formula(h: Tensor, weight: Tensor) -> Tensor:
    wide = h.double()
    return wide / (wide.square().sum(-1, keepdim=True) / h.shape[-1] + EPS).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 5), (2, 64), (5, 100), (2, 1030)])
def test_the_formula(rows: int, size: int, dtype: torch.dtype) -> None:
    delta, residual, weight = random(rows, size, dtype=dtype), random(rows, size, dtype=dtype, seed=1), random(size)
    h = residual + delta
    normed, updated = add_rms_norm(delta, residual, weight, EPS)
    assert updated is residual
    assert torch.equal(residual, h)
    rounding = torch.finfo(dtype).eps + 1e-6
    torch.testing.assert_close(normed.double(), formula(h, weight), rtol=rounding, atol=1e-6)
    torch.testing.assert_close(add_rms_norm_reference(None, h, weight, EPS)[0], normed, rtol=2 * rounding, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_delta_the_residual_stays(dtype: torch.dtype) -> None:
    residual, weight = random(3, 24, dtype=dtype), random(24, seed=1)
    before = residual.clone()
    normed, same = add_rms_norm(None, residual, weight, EPS)
    assert same is residual
    assert torch.equal(residual, before)
    torch.testing.assert_close(normed.double(), formula(before, weight), rtol=torch.finfo(dtype).eps + 1e-6, atol=1e-6)


def test_columns_of_a_wider_matrix() -> None:
    wide, weight = random(4, 40), random(24, seed=1)
    normed, _ = add_rms_norm(None, wide[:, 8:32], weight, EPS)
    assert torch.equal(normed, add_rms_norm(None, wide[:, 8:32].contiguous(), weight, EPS)[0])


def test_a_row_has_the_same_bits_in_every_batch() -> None:
    delta, residual, weight = random(9, 100), random(9, 100, seed=1), random(100, seed=2)
    normed, _ = add_rms_norm(delta, residual.clone(), weight, EPS)
    for row in range(9):
        alone, _ = add_rms_norm(delta[row : row + 1], residual[row : row + 1].clone(), weight, EPS)
        assert torch.equal(alone[0], normed[row])


def test_squares_beyond_the_range_of_fp16_and_rows_of_zeros() -> None:
    residual = torch.zeros(2, 16, dtype=torch.float16, device=DEVICE)
    residual[0] = 30000.0
    normed, _ = add_rms_norm(None, residual, torch.ones(16, device=DEVICE), EPS)
    assert normed[0].tolist() == [1.0] * 16
    assert normed[1].tolist() == [0.0] * 16


def test_no_rows() -> None:
    normed, _ = add_rms_norm(random(0, 8), random(0, 8), random(8), EPS)
    assert normed.shape == (0, 8)


def test_a_row_that_no_program_holds() -> None:
    with pytest.raises(AssertionError, match="at most 16384"):
        add_rms_norm(None, random(1, MAX_SIZE + 1), random(MAX_SIZE + 1), EPS)
