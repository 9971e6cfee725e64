"""Products of few rows in bf16 and the shapes of real models, against float64 and torch's own operations."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from slipstream.kernels.norm import add_rms_norm
from slipstream.kernels.skinny import skinny_gate_up, skinny_linear, skinny_norm_gate_up, skinny_norm_linear
from slipstream.kernels.skinny_configs import SkinnyConfig, default_config

pytestmark = pytest.mark.gpu

EPS = 1e-5
SHAPES = [(28672, 4096), (4096, 14336), (1002, 5120), (334, 4100)]
ROWS = [1, 3, 4, 8, 32]
GEMV = SkinnyConfig("gemv", 4, 1024, 2, 3, prefetch=True)
DOT = SkinnyConfig("dot", 64, 128, 4, 4, split_k=4, prefetch=True)
NARROW_DOT = SkinnyConfig("dot", 16, 256, 2, 3)
MMA = SkinnyConfig("mma", 16, 64, 2, 4)
WIDE_MMA = SkinnyConfig("mma", 32, 512, 4, 2, prefetch=True)
TMA = SkinnyConfig("tma", 64, 128, 4, 4)
SPLIT_TMA = SkinnyConfig("tma", 64, 64, 4, 4, split_k=4, prefetch=True)


def normal(*shape: int, size: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.empty(*shape, dtype=torch.bfloat16, device="cuda").normal_(0, size, generator=generator)


class Inputs:
    def __init__(self, rows: int, n: int, k: int) -> None:
        self.delta, self.residual = normal(rows, k), normal(rows, k, seed=1)
        self.weight = normal(n, k, size=k**-0.5, seed=2)
        self.norm_weight = (1 + 0.1 * normal(k, seed=3)).float()
        torch.cuda.synchronize()  # kernels read weights before those in front of them have finished

    def by_torch(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """The three products, every operation rounded to `dtype`; h is rounded to bf16 always."""
        h, weight = (self.residual + self.delta).to(dtype), self.weight.to(dtype)
        y = F.linear(F.rms_norm(h, h.shape[1:], self.norm_weight.to(dtype), EPS), weight)
        gate, up = y.chunk(2, -1)
        return F.linear(self.residual.to(dtype), weight), y, F.silu(gate) * up

    def by_kernels(self, config: SkinnyConfig | None, rows: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
        delta, residual = self.delta[rows], self.residual[rows]
        y, h = skinny_norm_linear(delta, residual, self.norm_weight, EPS, self.weight, config)
        gated, other_h = skinny_norm_gate_up(delta, residual, self.norm_weight, EPS, self.weight, config)
        assert torch.equal(h, residual + delta) and torch.equal(other_h, h)
        return skinny_linear(residual, self.weight, config), y, gated


def error(values: Tensor, exact: Tensor) -> float:
    return float((values.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_error_is_at_most_twice_that_of_torch(rows: int, n: int, k: int) -> None:
    inputs = Inputs(rows, n, k)
    exact, own = inputs.by_torch(torch.float64), inputs.by_torch(torch.bfloat16)
    for config in (None, DOT, NARROW_DOT, *([GEMV] if rows <= 4 else [])):
        for got, want, torchs in zip(inputs.by_kernels(config), exact, own, strict=True):
            assert error(got, want) <= 2 * error(torchs, want), config


@pytest.mark.parametrize(
    ("config", "most_rows"),
    [(default_config("linear", 4, 4096, 4096), 4), (GEMV, 4), (DOT, 8), (NARROW_DOT, 8), (SPLIT_TMA, 8)],
)
@pytest.mark.parametrize(("n", "k"), [(1008, 5120)])
def test_a_row_has_the_same_bits_whatever_stands_beside_it(
    config: SkinnyConfig, most_rows: int, n: int, k: int
) -> None:
    inputs = Inputs(most_rows, n, k)
    together = inputs.by_kernels(config)
    for count in range(1, most_rows):
        for alone, all_rows in zip(inputs.by_kernels(config, slice(count)), together, strict=True):
            assert torch.equal(alone, all_rows[:count]), f"{count} of {most_rows} rows"


@pytest.mark.parametrize("rows", [16, 32])
def test_shares_of_columns_are_added_in_one_order(rows: int) -> None:
    inputs = Inputs(rows, 4096, 4096)
    first = inputs.by_kernels(DOT)
    for _ in range(50):
        assert all(map(torch.equal, inputs.by_kernels(DOT), first))


def chain(inputs: Inputs, down: Tensor, config: SkinnyConfig) -> Callable[[], Tensor]:
    """Layers whose kernels each read what the one before wrote, and may start before it has finished."""

    def run() -> Tensor:
        delta, residual = inputs.delta, inputs.residual
        for _ in range(8):
            gated, residual = skinny_norm_gate_up(delta, residual, inputs.norm_weight, EPS, inputs.weight, config)
            delta = skinny_linear(gated, down, config)
        return skinny_norm_linear(delta, residual, inputs.norm_weight, EPS, inputs.weight, config)[0]

    return run


@pytest.mark.parametrize(("rows", "config"), [(1, GEMV), (4, DOT), (16, DOT), (64, SPLIT_TMA)])
def test_a_graph_of_overlapping_kernels_gives_the_bits_of_single_launches(rows: int, config: SkinnyConfig) -> None:
    inputs = Inputs(rows, 8192, 4096)
    run = chain(inputs, normal(4096, 4096, size=4096**-0.5, seed=4), config)
    want = run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run()
    for _ in range(20):
        got.zero_()
        graph.replay()
        assert torch.equal(got, want)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_the_error_of_products_without_a_norm(rows: int, n: int, k: int) -> None:
    x, weight = normal(rows, k), normal(n, k, size=k**-0.5, seed=2)
    torch.cuda.synchronize()
    products = []
    for dtype in (torch.float64, torch.bfloat16):
        y = F.linear(x.to(dtype), weight.to(dtype))
        gate, up = y.chunk(2, -1)
        products.append((y, F.silu(gate) * up))
    (exact, exact_gated), (own, own_gated) = products
    for config in (None, MMA, WIDE_MMA, NARROW_DOT, *([GEMV] if rows <= 4 else [])):
        assert error(skinny_linear(x, weight, config), exact) <= 2 * error(own, exact), config
        assert error(skinny_gate_up(x, weight, config), exact_gated) <= 2 * error(own_gated, exact_gated), config


@pytest.mark.parametrize("rows", [5, 17, 64])
@pytest.mark.parametrize(("n", "k"), [(28672, 4096), (4096, 14336), (1002, 5120)])
def test_the_error_of_products_whose_weights_the_memory_accelerator_fetches(rows: int, n: int, k: int) -> None:
    x, weight = normal(rows, k), normal(n, k, size=k**-0.5, seed=2)
    torch.cuda.synchronize()
    exact, own = (F.linear(x.to(dtype), weight.to(dtype)) for dtype in (torch.float64, torch.bfloat16))
    (gate, up), (own_gate, own_up) = exact.chunk(2, -1), own.chunk(2, -1)
    exact_gated, own_gated = F.silu(gate) * up, F.silu(own_gate) * own_up
    for config in (TMA, SPLIT_TMA):
        assert error(skinny_linear(x, weight, config), exact) <= 2 * error(own, exact), config
        assert error(skinny_gate_up(x, weight, config), exact_gated) <= 2 * error(own_gated, exact_gated), config


@pytest.mark.parametrize("config", [MMA, WIDE_MMA])
def test_an_mma_keeps_a_rows_bits_for_any_number_of_rows_up_to_8(config: SkinnyConfig) -> None:
    x, weight = normal(8, 4096), normal(4096, 4096, size=4096**-0.5, seed=2)
    torch.cuda.synchronize()
    together = skinny_gate_up(x, weight, config)
    for count in range(1, 8):
        assert torch.equal(skinny_gate_up(x[:count], weight, config), together[:count]), f"{count} of 8 rows"


@pytest.mark.parametrize("config", [MMA, WIDE_MMA])
def test_overlapping_mmas_give_the_bits_of_single_launches(config: SkinnyConfig) -> None:
    x = normal(4, 4096)
    gate_up, down = (normal(n, 4096, size=4096**-0.5, seed=2) for n in (8192, 4096))
    ones = torch.ones(4096, device="cuda")
    torch.cuda.synchronize()

    def run(is_alone: bool) -> Tensor:
        steps = (
            lambda y: add_rms_norm(None, y, ones, EPS)[0],
            lambda y: skinny_gate_up(y, gate_up, config),
            lambda y: skinny_linear(y, down, config),
        )
        y = x
        for _ in range(8):
            for step in steps:
                y = step(y)
                if is_alone:
                    torch.cuda.synchronize()
        return y

    want = run(is_alone=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run(is_alone=False)
    for _ in range(20):
        got.zero_()
        graph.replay()
        assert torch.equal(got, want)
