"""Prefill with torch's kernels against softmax(q k^T) v in float64, request by request, all positions masked."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from slipstream.attention import sdpa_prefill
from slipstream.attention.layer import AttentionLayer
from slipstream.attention.sdpa_prefill import SdpaPrefill

LAYER = AttentionLayer(num_heads=6, num_kv_heads=2, head_dim=8, scale=0.3)
MANY_HEADS = AttentionLayer(num_heads=3, num_kv_heads=3, head_dim=16, scale=0.5)
STEPS = [
    ([12], [12]),  # a prompt from its start
    ([5], [17]),  # with a cached prefix
    ([1, 9, 4, 7], [1, 9, 20, 8]),
]


def expected(layer: AttentionLayer, q: Tensor, k: Tensor, v: Tensor, num_rows: list[int], kv_lens: list[int]) -> Tensor:
    """[T, heads * head_dim] in float64."""
    group_size = layer.num_heads // layer.num_kv_heads
    parts = (q.double().split(num_rows), k.double().split(kv_lens), v.double().split(kv_lens))
    outs = []
    for rows, own_k, own_v in zip(*parts, strict=True):
        keys, values = (x.repeat_interleave(group_size, dim=1) for x in (own_k, own_v))
        distance = torch.arange(len(keys) - len(rows), len(keys))[:, None] - torch.arange(len(keys))
        visible = (distance >= 0) & (distance < (layer.window or len(keys)))
        scores = torch.einsum("nhd,lhd->hnl", rows, keys) * layer.scale
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        outs.append(torch.einsum("hnl,lhd->nhd", weights, values).flatten(1))
    return torch.cat(outs)


def random_inputs(layer: AttentionLayer, num_rows: list[int], kv_lens: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Slices of wider tensors, as they come from one projection: only the last dimension is contiguous."""
    generator = torch.Generator().manual_seed(sum(kv_lens))
    q = torch.randn(sum(num_rows), layer.num_heads + 2, layer.head_dim, generator=generator)[:, 1:-1]
    kv = torch.randn(sum(kv_lens), 2, layer.num_kv_heads, layer.head_dim, generator=generator)
    return q, kv[:, 0], kv[:, 1]


@pytest.mark.parametrize("layer", [LAYER, MANY_HEADS, replace(LAYER, window=4), replace(LAYER, window=10)])
@pytest.mark.parametrize(("num_rows", "kv_lens"), STEPS)
def test_is_softmax_attention(layer: AttentionLayer, num_rows: list[int], kv_lens: list[int]) -> None:
    q, k, v = random_inputs(layer, num_rows, kv_lens)
    prefill = SdpaPrefill()
    prefill.plan(num_rows, kv_lens, q.device)
    out = prefill.run(layer, q, k, v)
    assert out.shape == (sum(num_rows), layer.num_heads * layer.head_dim)
    torch.testing.assert_close(out.double(), expected(layer, q, k, v, num_rows, kv_lens), rtol=2e-5, atol=2e-5)


def test_blocks_of_rows_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa_prefill, "rows_per_block", lambda kv_len, window: 3)
    num_rows, kv_lens = [11], [30]
    for layer in (LAYER, replace(LAYER, window=4)):
        q, k, v = random_inputs(layer, num_rows, kv_lens)
        prefill = SdpaPrefill()
        prefill.plan(num_rows, kv_lens, q.device)
        out = prefill.run(layer, q, k, v)
        torch.testing.assert_close(out.double(), expected(layer, q, k, v, num_rows, kv_lens), rtol=2e-5, atol=2e-5)


def test_a_request_never_reads_its_neighbours() -> None:
    num_rows, kv_lens = [3, 4, 2], [9, 4, 7]
    q, k, v = random_inputs(LAYER, num_rows, kv_lens)
    prefill = SdpaPrefill()
    prefill.plan(num_rows, kv_lens, q.device)
    clean = prefill.run(LAYER, q, k, v)
    for x in (k, v):
        x[9:13] = float("nan")  # the second request's
    spoilt = prefill.run(LAYER, q, k, v)
    assert torch.equal(spoilt[:3], clean[:3]) and torch.equal(spoilt[7:], clean[7:])
    assert spoilt[3:7].isnan().any()


def test_says_what_it_cannot_do() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    latent = replace(LAYER, num_kv_heads=1, latent_dim=4)
    assert SdpaPrefill.available([LAYER], torch.float32, cpu) is None
    assert SdpaPrefill.available([LAYER], torch.bfloat16, cuda) is None
    assert "float32" in str(SdpaPrefill.available([LAYER], torch.float32, cuda))
    assert "latent" in str(SdpaPrefill.available([LAYER, latent], torch.bfloat16, cuda))
