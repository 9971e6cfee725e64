"""A GPU's memory, part by part. Expected sizes are written out for the 7B geometry."""

import dataclasses
from typing import Any

import pytest

from slipstream.attention.layer import AttentionLayer
from slipstream.errors import ConfigError
from slipstream.worker.kv_pool import PoolLimits
from slipstream.worker.memory import DeviceUse, Memory
from slipstream.worker.memory_plan import (
    LIBRARY_BYTES,
    MARGIN_BYTES,
    SAMPLER_COPIES,
    ImageFacts,
    MemoryFacts,
    MemoryPlan,
    ModelFacts,
    compare,
    plan_memory,
)

GIB = 2**30
CONFIG = {"hidden_size": 4096, "intermediate_size": 14336}
GQA = AttentionLayer(num_heads=32, num_kv_heads=8, head_dim=128, scale=1.0)
H200 = Memory(total_bytes=140 * GIB, free_bytes=139 * GIB)


def model(config: dict[str, Any] = CONFIG, layers: list[AttentionLayer] | None = None, **changes: Any) -> ModelFacts:
    sizes = dict(weight_bytes=14 * GIB, kv_bytes_per_token=128 * 1024, item_bytes=2, is_fp8=False)
    return ModelFacts.of(config, layers or [GQA] * 32, **(sizes | changes))  # type: ignore[arg-type]


DRAFT = model(layers=[GQA], weight_bytes=GIB // 2, kv_bytes_per_token=4 * 1024)


def facts(**changes: Any) -> MemoryFacts:
    values: dict[str, Any] = dict(
        target=model(),
        draft=None,
        vocab_size=32768,
        pages_per_slot=2049,
        chunk_rows=8192,
        decode_rows=256,
    )
    return MemoryFacts(**(values | changes))


def limits(**changes: Any) -> PoolLimits:
    values: dict[str, Any] = dict(
        page_size=16, context_length=32768, max_running_requests=256, max_total_tokens=None, mem_fraction_static=0.92
    )
    return PoolLimits(**(values | changes))


def plan(memory: Memory = H200, of: MemoryFacts | None = None, **changes: Any) -> MemoryPlan:
    return plan_memory(limits(**changes), of or facts(), memory)


def sizes(found: MemoryPlan) -> dict[str, int]:
    return {part.name: part.num_bytes for part in found.parts}


def test_the_parts_of_7b() -> None:
    """Every tensor that lives while a layer runs, written out for one row."""
    parts = sizes(plan(of=facts(workspace_bytes=7, graph_bytes=9)))
    row = {
        "residual": 4096, "added": 4096, "normed": 4096, "out": 4096,
        "qkv": (32 + 8 + 8) * 128, "turned": 32 * 128, "attended": 32 * 128,
        "gate_up": 2 * 14336, "product": 14336,
    }  # fmt: skip
    assert parts["activations of 8448 rows"] == 8448 * 2 * sum(row.values())
    assert parts["logits and sampling of 256 rows"] == 32768 * 256 * (2 + 4 * SAMPLER_COPIES)
    tables, prompts, histories = 257 * 2049 * 4, 257 * 32768 * 8, (256 + 128) * 32768 * 4
    assert parts["slots"] == pytest.approx(tables + prompts + histories, rel=0.01)
    assert (parts["weights"], parts["CUDA libraries"]) == (14 * GIB, LIBRARY_BYTES)
    assert (parts["attention workspaces"], parts["CUDA graphs"]) == (7, 9)


def test_everything_together_stays_in_the_share() -> None:
    found = plan()
    page_bytes = 16 * 128 * 1024
    share = int(0.92 * 140 * GIB)
    assert share - page_bytes < found.planned_bytes <= share
    assert sizes(found)["KV pages"] == found.pool.num_pages * page_bytes
    assert found.pool.reason == (
        f"{sizes(found)['KV pages'] / GIB:.2f} GiB, what --mem-fraction-static 0.92 leaves beside 14.00 GiB of weights "
        f"and {(found.planned_bytes - sizes(found)['KV pages']) / GIB - 14:.2f} GiB of buffers"
    )


def test_no_more_than_is_free_but_for_a_margin() -> None:
    found = plan(Memory(140 * GIB, 40 * GIB))
    page_bytes = 16 * 128 * 1024
    assert 40 * GIB - MARGIN_BYTES - page_bytes < found.planned_bytes <= 40 * GIB - MARGIN_BYTES
    assert "what free memory leaves" in found.pool.reason


def test_no_more_than_can_run_at_once() -> None:
    found = plan(context_length=100, max_running_requests=3)
    assert found.pool.num_pages == 3 * 7 + 1
    assert "all that 3 requests of 100 tokens can fill" in found.pool.reason


def test_as_many_tokens_as_asked_for_even_beyond_the_share() -> None:
    found = plan(max_total_tokens=16_000, mem_fraction_static=0.1)
    assert found.pool.num_pages == 1001
    assert "--max-total-tokens 16000" in found.pool.reason
    with pytest.raises(ConfigError, match="--max-total-tokens is 15, less than one page"):
        plan(max_total_tokens=15)


def test_a_draft_has_weights_kv_and_logits() -> None:
    """Its activations fit where the target's were: it adds its wide input, beside the target's hidden states."""
    rows = 256 * 4
    alone = sizes(plan(of=facts(decode_rows=rows)))
    both = plan(of=facts(decode_rows=rows, draft=DRAFT))
    parts = sizes(both)
    assert parts["draft's weights"] == GIB // 2
    assert parts["KV pages"] == both.pool.num_pages * 16 * 132 * 1024
    added = {name: parts[name] - alone[name] for name in alone}
    assert added["logits and sampling of 1024 rows"] == 256 * 32768 * 2
    assert added["activations of 9216 rows"] == 9216 * 2 * (4096 + 8192)
    assert added["slots"] == 257 * 2 * 4096 * 2


def test_rejection_sampling_keeps_distributions_of_drafts() -> None:
    changes = dict(decode_rows=256 * 4, draft=DRAFT)
    name = "logits and sampling of 1024 rows"
    with_it, without = (sizes(plan(of=facts(**changes, rejection_sampling=on)))[name] for on in (True, False))
    assert with_it - without == 256 * 3 * 32768 * 4


def test_latent_attention_experts_and_fp8_take_more() -> None:
    latent = AttentionLayer(num_heads=32, num_kv_heads=1, head_dim=320, scale=1.0, latent_dim=256)
    config = {"hidden_size": 4096, "moe_intermediate_size": 2048, "n_shared_experts": 2}
    sparse = model(config, [latent])
    assert (sparse.intermediate_size, sparse.kv_width, sparse.value_width) == (4096, 320, 8192)
    fp32 = 2 * 4096 + 4 * (32 * 320 + 320)
    assert sparse.row_bytes() - dataclasses.replace(sparse, is_fused=True).row_bytes() == 4 * fp32
    fp8 = model(is_fp8=True)
    assert fp8.row_bytes() > model().row_bytes()
    assert fp8.widened_bytes() == 2 * 28672 * 4096  # gate and up in bf16
    assert model().widened_bytes() == 0
    activations = "activations of 8448 rows"
    assert sizes(plan(of=facts(target=fp8)))[activations] == 8448 * fp8.row_bytes() + fp8.widened_bytes()


def test_images() -> None:
    vision = {"patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096}
    images = ImageFacts.of(vision, max_size=1540)
    assert images.num_patches == 110 * 110
    part = sizes(plan(of=facts(images=images)))["image encoder"]
    assert part > 110 * 110 * 2 * (3 * 4096 + 4 * 1024) + 8192 * 4096 * 2
    assert part < 2 * GIB


def test_what_does_not_fit_is_listed_part_by_part() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(Memory(16 * GIB, 16 * GIB), facts(draft=DRAFT, decode_rows=1024, graph_bytes=GIB, workspace_bytes=GIB))
    head, *lines, advice = str(caught.value).splitlines()
    total = sum(float(line.split(" GiB")[0].split()[-1]) for line in lines)
    assert float(head.split(" GiB too little")[0]) == pytest.approx(total - 14.72, abs=0.05)
    assert "--mem-fraction-static 0.92 gives 14.72 GiB" in head and "of 16.00 GiB" in head
    names = [line[2:].split("  ")[0] for line in lines]
    assert names == [
        "weights",
        "draft's weights",
        "slots",
        "logits and sampling of 1024 rows",
        "activations of 9216 rows",
        "attention workspaces",
        "CUDA graphs",
        "CUDA libraries",
        "KV pages",
    ]
    assert len({line.index(" GiB") for line in lines}) == 1
    listed = " ".join(lines)
    for flag in (
        "--max-running-requests", "--chunked-prefill-size", "--mem-fraction-static", "--context-length",
        "--speculative-num-steps", "--max-total-tokens", "--disable-cuda-graph",
    ):  # fmt: skip
        assert flag in listed
    assert advice.startswith("raise --mem-fraction-static, or lower the flags")


@pytest.mark.parametrize(
    ("memory", "changes", "said"),
    [
        (Memory(80 * GIB, 10 * GIB), {}, "free some memory"),
        (Memory(80 * GIB, 80 * GIB), {"mem_fraction_static": 0.1}, "raise --mem-fraction-static"),
        (Memory(80 * GIB, 80 * GIB), {"max_total_tokens": 10**7}, "--max-total-tokens"),
    ],
)
def test_the_remedy_is_the_one_that_helps(memory: Memory, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(memory, **changes)
    assert said in str(caught.value)
    assert ("raise" in str(caught.value)) == ("raise" in said)


def test_exactly_two_pages_fit_and_one_byte_less_does_not() -> None:
    others = plan(mem_fraction_static=0.5).planned_bytes - sizes(plan(mem_fraction_static=0.5))["KV pages"]
    least = others + MARGIN_BYTES + 2 * 16 * 128 * 1024
    assert plan(Memory(140 * GIB, least)).pool.num_pages == 2
    with pytest.raises(ConfigError, match="the least, two pages of 16 tokens"):
        plan(Memory(140 * GIB, least - 1))


def test_the_table() -> None:
    *lines, total = plan().table().splitlines()
    values = [float(line.split("GiB")[0].split()[-1]) for line in lines]
    assert sum(values) == pytest.approx(float(total.rsplit("GiB", 1)[0].split()[-1]), abs=0.05)
    assert "of 140.00 GiB" in total


def test_measured_against_planned() -> None:
    found = plan()
    assert "more than planned" not in compare(found, DeviceUse(100 * GIB, 110 * GIB, 20 * GIB, 140 * GIB))
    line = compare(found, DeviceUse(100 * GIB, 110 * GIB, 5 * GIB, 140 * GIB))
    assert "134.00 GiB taken (100.00 GiB in tensors, 110.00 GiB reserved for them), 5.00 GiB of 140.00 GiB free" in line
    assert "5.2" in line.split("; ")[1] and "--mem-fraction-static" in line
