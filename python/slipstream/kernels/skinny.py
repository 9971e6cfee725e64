"""Matrix products of 1 to 64 rows, which read every weight once at the speed of memory, with what stands before and
after them in a layer.

All compute in fp32 and round the result once. A row's bits do not depend on what stands in the other rows. Nor do they
depend on how many rows there are, as long as the configs agree in kind, block_k, num_warps and split_k; for a dot or a
tma, whose instructions depend on the padded rows, only among 1-8, 9-16, 17-32 and 33-64 rows. Weights are read before
the kernels before have finished, so whoever changes them synchronises with the device first.
"""

import torch.nn.functional as F
from torch import Tensor

from slipstream.kernels.skinny_configs import MAX_MMA_ROWS, MAX_ROWS, Op, SkinnyConfig, default_config, skinny_config
from slipstream.kernels.skinny_dot import launch_dot
from slipstream.kernels.skinny_gemv import launch_gemv
from slipstream.kernels.skinny_mma import launch_mma


def skinny_linear(x: Tensor, weight: Tensor, config: SkinnyConfig | None = None) -> Tensor:
    """y = x W^T: x [M, K] and W [N, K] give [M, N]; M is at most 64, all are of one dtype and contiguous.

    `config`, here and below: None takes what skinny_config() says, or default_config() where that prefers cuBLAS.
    """
    return _product("linear", x, weight, config)[0]


def skinny_gate_up(x: Tensor, weight: Tensor, config: SkinnyConfig | None = None) -> Tensor:
    """silu(g) * u [M, I]: skinny_linear() with weight [2I, K] gives g and u, which are not rounded."""
    return _product("gate_up", x, weight, config)[0]


def skinny_norm_linear(
    delta: Tensor | None,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    config: SkinnyConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """(y [M, N], h [M, K]): h = residual + delta, y = (h / sqrt(mean(h^2) + eps) * norm_weight) W^T.

    h is rounded to the dtype before it is used, and a new tensor; without a delta it is `residual` itself. norm_weight
    [K] is fp32, or of the dtype of h, which is less to read. The factor of the norm (Zhang and Sennrich, 2019) is the
    same for a whole row and comes after the sum. A gemv keeps h * norm_weight in fp32; the others round it to the
    dtype.
    """
    return _product("norm_linear", residual, weight, config, delta, norm_weight, eps)


def skinny_norm_gate_up(
    delta: Tensor | None,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    config: SkinnyConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """(silu(g) * u [M, I], h [M, K]): skinny_norm_linear() with weight [2I, K] gives g and u, which are not rounded."""
    return _product("norm_gate_up", residual, weight, config, delta, norm_weight, eps)


def skinny_linear_reference(x: Tensor, weight: Tensor) -> Tensor:
    """See skinny_linear."""
    return (x.float() @ weight.float().T).to(x.dtype)


def skinny_gate_up_reference(x: Tensor, weight: Tensor) -> Tensor:
    """See skinny_gate_up."""
    gate, up = (x.float() @ weight.float().T).chunk(2, -1)
    return (F.silu(gate) * up).to(x.dtype)


def skinny_norm_linear_reference(
    delta: Tensor | None, residual: Tensor, norm_weight: Tensor, eps: float, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """See skinny_norm_linear."""
    y, h = _norm_product(delta, residual, norm_weight, eps, weight)
    return y.to(h.dtype), h


def skinny_norm_gate_up_reference(
    delta: Tensor | None, residual: Tensor, norm_weight: Tensor, eps: float, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """See skinny_norm_gate_up."""
    y, h = _norm_product(delta, residual, norm_weight, eps, weight)
    gate, up = y.chunk(2, -1)
    return (F.silu(gate) * up).to(h.dtype), h


def _norm_product(
    delta: Tensor | None, residual: Tensor, norm_weight: Tensor, eps: float, weight: Tensor
) -> tuple[Tensor, Tensor]:
    h = residual if delta is None else residual + delta
    wide = h.float()
    scale = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (wide * norm_weight) @ weight.float().T * scale, h


def _product(
    op: Op,
    x: Tensor,
    weight: Tensor,
    config: SkinnyConfig | None,
    delta: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, Tensor]:
    num_rows, k = x.shape
    n = weight.shape[0]
    assert 1 <= num_rows <= MAX_ROWS, f"{num_rows} rows: 1 to {MAX_ROWS}"
    assert weight.shape[1] == k and weight.dtype == x.dtype and weight.is_contiguous() and x.is_contiguous()
    assert delta is None or (delta.shape == x.shape and delta.dtype == x.dtype and delta.is_contiguous())
    assert norm_weight is None or (norm_weight.shape == (k,) and norm_weight.is_contiguous())
    gate_up = op in ("gate_up", "norm_gate_up")
    assert not gate_up or n % 2 == 0, f"gate and up of {n} rows"
    if config is None:
        config = skinny_config(op, num_rows, weight) or default_config(op, num_rows, n, k)
    if config.kind == "mma":
        assert norm_weight is None and num_rows <= MAX_MMA_ROWS, f"{config} for {num_rows} rows of {op}"
        return launch_mma(x, weight, config, gate_up), x
    launch = launch_gemv if config.kind == "gemv" else launch_dot
    return launch(x, weight, config, delta, norm_weight, eps, gate_up)
