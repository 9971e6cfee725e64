"""The kernels for large chunks against softmax(q k^T) v in float64, with torch's own kernel as the measure of error."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from slipstream.attention.base import Layout
from slipstream.attention.flashinfer_prefill import FlashInferPrefill
from slipstream.attention.large_prefill import LargePrefill
from slipstream.attention.layer import AttentionLayer
from slipstream.attention.paging import make_layout
from slipstream.attention.torch_native import TorchNativeAttention

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
LAYER = AttentionLayer(num_heads=32, num_kv_heads=8, head_dim=128, scale=128**-0.5)
SMALL_HEADS = AttentionLayer(num_heads=12, num_kv_heads=4, head_dim=64, scale=0.2)
STEPS = [([600], [600]), ([513], [1500]), ([1, 700, 130, 129], [1, 700, 1027, 900])]
KERNELS: dict[str, Callable[[], LargePrefill]] = {
    "fa3": lambda: FlashInferPrefill(kernel="fa3"),
    "fa2": lambda: FlashInferPrefill(kernel="fa2"),
}


@pytest.fixture(params=KERNELS)
def prefill(request: pytest.FixtureRequest) -> LargePrefill:
    if problem := FlashInferPrefill.available([LAYER], torch.bfloat16, CUDA):
        pytest.skip(f"FlashInfer {problem}")
    if request.param == "fa3" and torch.cuda.get_device_capability(CUDA)[0] != 9:
        pytest.skip("FlashAttention-3 needs a Hopper GPU")
    return KERNELS[request.param]()


def random_inputs(layer: AttentionLayer, num_rows: list[int], kv_lens: list[int], seed: int = 0) -> tuple[Tensor, ...]:
    """Keys and values side by side, as a gather from the cache leaves them."""
    generator = torch.Generator(CUDA).manual_seed(seed)
    q = torch.randn(sum(num_rows), layer.num_heads, layer.head_dim, device=CUDA, generator=generator)
    kv = torch.randn(sum(kv_lens), *layer.cache_shape, device=CUDA, generator=generator)
    return q.bfloat16(), *kv.bfloat16().unbind(1)


def attend(
    layer: AttentionLayer, inputs: tuple[Tensor, ...], num_rows: list[int], kv_lens: list[int], dtype: torch.dtype
) -> Tensor:
    """[T, heads * head_dim] with torch's own op, request by request."""
    q, k, v = (x.to(dtype).transpose(0, 1) for x in inputs)
    outs = []
    for own in zip(q.split(num_rows, 1), k.split(kv_lens, 1), v.split(kv_lens, 1), strict=True):
        mask = torch.ones(own[0].shape[1], own[1].shape[1], dtype=torch.bool, device=CUDA)
        mask = mask.tril(own[1].shape[1] - own[0].shape[1])
        batch = (x.unsqueeze(0) for x in own)
        outs.append(F.scaled_dot_product_attention(*batch, attn_mask=mask, scale=layer.scale, enable_gqa=True)[0])
    return torch.cat([out.transpose(0, 1).flatten(1) for out in outs])


@pytest.mark.parametrize("layer", [LAYER, SMALL_HEADS], ids=["128", "64"])
@pytest.mark.parametrize(("num_rows", "kv_lens"), STEPS)
def test_error_is_at_most_twice_that_of_torch(
    prefill: LargePrefill, layer: AttentionLayer, num_rows: list[int], kv_lens: list[int]
) -> None:
    inputs = random_inputs(layer, num_rows, kv_lens)
    exact = attend(layer, inputs, num_rows, kv_lens, torch.float64)
    own = (attend(layer, inputs, num_rows, kv_lens, torch.bfloat16).double() - exact).abs().max()
    prefill.plan(num_rows, kv_lens, CUDA)
    out = prefill.run(layer, *inputs)
    assert out.shape == exact.shape and out.dtype == torch.bfloat16
    assert (out.double() - exact).abs().max() <= 2 * own


def test_steps_planned_ahead_of_the_device_keep_their_schedules(prefill: LargePrefill) -> None:
    steps = [([100 + 200 * (step % 3), 64 * step + 1], [900, 64 * step + 1 + 100 * (step % 2)]) for step in range(12)]
    inputs = [random_inputs(LAYER, *step, seed) for seed, step in enumerate(steps)]
    for step, own in zip(steps, inputs, strict=True):  # compiles and prepares every shape
        prefill.plan(*step, CUDA)
        prefill.run(LAYER, *own)
    torch.cuda.synchronize()
    torch.cuda._sleep(100_000_000)  # some 50 ms, in which the host gets as far ahead as it can
    outs = []
    for step, own in zip(steps, inputs, strict=True):
        prefill.plan(*step, CUDA)
        outs.append([prefill.run(LAYER, *own) for _ in range(2)])
    for step, own, (first, second) in zip(steps, inputs, outs, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first.double(), attend(LAYER, own, *step, torch.float64), rtol=0.01, atol=0.01)


def test_layers_of_several_kinds_share_a_step(prefill: LargePrefill) -> None:
    num_rows, kv_lens = STEPS[2]
    prefill.plan(num_rows, kv_lens, CUDA)
    for layer in (LAYER, SMALL_HEADS, LAYER, SMALL_HEADS):
        inputs = random_inputs(layer, num_rows, kv_lens)
        exact = attend(layer, inputs, num_rows, kv_lens, torch.float64)
        torch.testing.assert_close(prefill.run(layer, *inputs).double(), exact, rtol=0.01, atol=0.01)


def test_the_backend_mixes_decode_rows_and_large_chunks() -> None:
    from slipstream.attention.flashinfer import FlashInferAttention

    layers = [LAYER]
    if problem := FlashInferAttention.supports(layers, torch.bfloat16, CUDA):
        pytest.skip(f"FlashInferAttention {problem}")
    cache, layout = random_cache(starts=[700, 30, 16, 0], num_rows=[1, 1, 600, 300], num_decode=2)
    caches = [[cache.clone()] for _ in range(3)]
    q, k, v = random_inputs(LAYER, [902], [902])
    backend, native = FlashInferAttention(layers, caches[0]), TorchNativeAttention(layers, caches[1])
    exact_backend = TorchNativeAttention(layers, [cache.double() for cache in caches[2]])
    backend.warm_up()
    for each in (backend, native, exact_backend):
        each.plan(layout)
    exact = exact_backend.run(0, q.double(), k.double(), v.double())
    out, own = backend.run(0, q, k, v), native.run(0, q, k, v)
    torch.testing.assert_close(caches[0][0], caches[1][0], rtol=0, atol=0, equal_nan=True)
    assert (out.double() - exact).abs().max() <= 2 * (own.double() - exact).abs().max()


def random_cache(starts: list[int], num_rows: list[int], num_decode: int) -> tuple[Tensor, Layout]:
    """Pages of 16 tokens in random order; the sink and what no request has written hold NaN."""
    ends = [start + count for start, count in zip(starts, num_rows, strict=True)]
    pages = [-(-end // 16) for end in ends]
    ids = (torch.randperm(sum(pages), generator=torch.Generator().manual_seed(0)) + 1).tolist()
    tables = torch.zeros(len(pages), max(pages), dtype=torch.int32)
    cache = torch.full((sum(pages) + 1, 16, *LAYER.cache_shape), float("nan"), device=CUDA)
    for request, (count, start) in enumerate(zip(pages, starts, strict=True)):
        own = [ids.pop() for _ in range(count)]
        tables[request, :count] = torch.tensor(own, dtype=torch.int32)
        rows = torch.tensor([own[at // 16] * 16 + at % 16 for at in range(start)], dtype=torch.int64, device=CUDA)
        cache.flatten(0, 1)[rows] = torch.randn(start, *LAYER.cache_shape, device=CUDA)
    layout, _ = make_layout(tables.to(CUDA), 16, range(len(pages)), starts, num_rows, num_decode)
    return cache.bfloat16(), layout
