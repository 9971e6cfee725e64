"""SwiGLU's activation against its formula in fp64 and the expression of the CPU path."""

import math

import pytest
import torch
from torch import Tensor

from slipstream.kernels.activation import FEW_ROWS, silu_and_mul, silu_and_mul_reference
from slipstream.kernels.launch import IS_INTERPRETED
from support.one_thread import for_tiny_models  # noqa: F401

DEVICE = "cpu" if IS_INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.float16)


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 7), (2, 1024), (2, 2500), (FEW_ROWS + 1, 33)])
def test_the_formula(rows: int, size: int, dtype: torch.dtype) -> None:
    gate_up = random(rows, 2 * size, dtype=dtype)
    gate, up = gate_up.double().chunk(2, -1)
    out = silu_and_mul(gate_up)
    assert out.shape == (rows, size)
    assert out.is_contiguous()
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), gate * up / (1 + (-gate).exp()), rtol=2 * rounding + 1e-6, atol=1e-7)
    torch.testing.assert_close(out, silu_and_mul_reference(gate_up), rtol=2 * rounding + 1e-6, atol=1e-7)


def test_silu_is_rounded_before_the_product() -> None:
    """The rounded silu(1) explains its product with every number from 1 to 4, the exact one does not."""
    up = torch.arange(1024, 4096, device=DEVICE).div(1024).to(torch.float16)
    out = silu_and_mul(torch.cat((torch.ones_like(up), up)).unsqueeze(0))[0]
    silu = torch.tensor(1 / (1 + math.exp(-1)), dtype=torch.float64)
    assert torch.equal(out, (silu.half().double() * up.double().cpu()).half().to(DEVICE))
    assert not torch.equal(out, (silu * up.double().cpu()).half().to(DEVICE))


def test_large_gates() -> None:
    """silu(g) is g for large g, and vanishes for small ones."""
    gate_up = torch.tensor([[80.0, -80.0, 0.0, 2.0, 3.0, 4.0]], device=DEVICE)
    assert silu_and_mul(gate_up)[0].tolist() == pytest.approx([160.0, 0.0, 0.0], abs=1e-30)


def test_no_rows() -> None:
    assert silu_and_mul(random(0, 8, dtype=torch.float32)).shape == (0, 4)
