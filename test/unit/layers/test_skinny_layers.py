"""Whichever kernels the table prefers, the layers give what their formulas say."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from slipstream.kernels.skinny_configs import Op, SkinnyConfig, default_config
from slipstream.layers import skinny
from slipstream.layers.norm import RMSNorm

torch.set_num_threads(1)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-2


def normal(*shape: int, seed: int, size: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size).to(DEVICE, torch.float16)


def prefer(monkeypatch: pytest.MonkeyPatch, ops: list[Op]) -> list[Op]:
    """The list of operations that the layers ask for is filled as they run."""
    asked: list[Op] = []

    def config(op: Op, num_rows: int, weight: Tensor) -> SkinnyConfig | None:
        asked.append(op)
        return default_config(op, num_rows, *weight.shape) if op in ops else None

    monkeypatch.setattr(skinny, "skinny_config", config)
    return asked


def normed(delta: Tensor, residual: Tensor, norm: RMSNorm) -> Tensor:
    h = (residual + delta).double()
    return h / (h.square().mean(-1, keepdim=True) + EPS).sqrt() * norm.weight.double()


@pytest.mark.parametrize(
    ("ops", "asked"),
    [
        (["norm_linear"], ["norm_linear"]),
        (["linear"], ["norm_linear", "linear"]),
        ([], ["norm_linear", "linear"]),
    ],
)
def test_a_linear_behind_a_norm(monkeypatch: pytest.MonkeyPatch, ops: list[Op], asked: list[Op]) -> None:
    found = prefer(monkeypatch, ops)
    delta, residual, weight = normal(3, 40, seed=0), normal(3, 40, seed=1), normal(12, 40, seed=2, size=0.1)
    norm = RMSNorm(normal(40, seed=3), EPS)
    exact_h = residual + delta
    exact = normed(delta, residual, norm) @ weight.double().T
    y, h = skinny.NormedSkinnyLinear(norm, weight)(delta, residual)
    assert found == asked and torch.equal(h, exact_h)
    torch.testing.assert_close(y.double(), exact, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("ops", "asked"),
    [
        (["norm_gate_up"], ["norm_gate_up", "linear"]),
        (["gate_up", "linear"], ["norm_gate_up", "gate_up", "linear"]),
        ([], ["norm_gate_up", "gate_up", "linear"]),
    ],
)
def test_a_feed_forward_behind_a_norm(monkeypatch: pytest.MonkeyPatch, ops: list[Op], asked: list[Op]) -> None:
    found = prefer(monkeypatch, ops)
    delta, residual = normal(2, 40, seed=0), normal(2, 40, seed=1)
    gate_up, down = normal(48, 40, seed=2, size=0.1), normal(40, 24, seed=4, size=0.1)
    norm = RMSNorm(normal(40, seed=3), EPS)
    exact_h = residual + delta
    gate, up = (normed(delta, residual, norm) @ gate_up.double().T).chunk(2, -1)
    exact = (F.silu(gate) * up) @ down.double().T
    y, h = skinny.NormedSkinnySwiGLU(norm, gate_up, down)(delta, residual)
    assert found == asked and torch.equal(h, exact_h)
    torch.testing.assert_close(y.double(), exact, rtol=2e-3, atol=2e-3)
