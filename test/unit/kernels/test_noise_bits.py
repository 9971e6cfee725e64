"""The kernels' keyed noise against the plain-torch one."""

import random

import torch
import triton
import triton.language as tl

from slipstream.kernels import noise as kernel_noise
from slipstream.kernels.launch import IS_INTERPRETED
from slipstream.sampling.noise import child_keys, gumbel, signed, uniforms

DEVICE = torch.device("cpu" if IS_INTERPRETED else "cuda")
SIZE = 256


@triton.jit
def _noise(keys, indices, bits, coins, gumbels, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, SIZE)
    key, index = tl.load(keys + at), tl.load(indices + at)
    child = kernel_noise.child_key(key, index)
    tl.store(bits + at, child.to(tl.int64))
    tl.store(coins + at, kernel_noise.uniform(child))
    tl.store(gumbels + at, kernel_noise.gumbel(key, index))


def test_bits_and_uniforms_are_equal_and_logarithms_nearly() -> None:
    random.seed(1)
    extremes = [0, -1, 2**63 - 1, -(2**63), 1]
    keys = torch.tensor([signed(random.getrandbits(64)) for _ in range(SIZE - 5)] + extremes, device=DEVICE)
    indices = torch.tensor(extremes + [random.randrange(-6, 2**40) for _ in range(SIZE - 5)], device=DEVICE)
    bits = torch.empty_like(keys)
    coins, gumbels = torch.empty(2, SIZE, device=DEVICE)
    _noise[(1,)](keys, indices, bits, coins, gumbels, SIZE=SIZE)
    expected = child_keys(keys, indices)
    assert torch.equal(bits, expected)
    assert torch.equal(coins, uniforms(expected))
    torch.testing.assert_close(gumbels, gumbel(keys, indices[:, None])[:, 0], rtol=3e-7, atol=5e-7)


def test_large_gumbels_keep_their_resolution() -> None:
    """They come from uniforms near 0, where 1 - u would round them away."""
    keys = torch.zeros(SIZE, dtype=torch.int64, device=DEVICE)
    ids = _ids_of_small_uniforms(keys.device)
    bits, coins, gumbels = torch.empty_like(keys), *torch.empty(2, SIZE, device=DEVICE)
    _noise[(1,)](keys, ids, bits, coins, gumbels, SIZE=SIZE)
    assert gumbels.min() > 8
    exact = -(-torch.log1p(-uniforms(child_keys(keys, ids)).double())).log()
    torch.testing.assert_close(gumbels.double(), exact, rtol=1e-6, atol=0)


def _ids_of_small_uniforms(device: torch.device) -> torch.Tensor:
    ids = torch.arange(2**20)
    uniform = uniforms(child_keys(torch.zeros(1, dtype=torch.int64), ids))
    return uniform.argsort()[:SIZE].to(device)
