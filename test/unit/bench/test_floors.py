"""Bytes and products of steps: against transformers' modules, torch's own count, and the floors of published sizes."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import MistralConfig, MistralForCausalLM

from slipstream.bench.devices import DEVICE_SPEEDS, DeviceSpeed
from slipstream.bench.floors import DecoderCost, PairCost, Work, decoder_cost
from slipstream.bench.one_batch import Shape
from slipstream.bench.presets import PRESETS, Preset
from slipstream.bench.targets import BS_1, BS_8, BS_64
from slipstream.hf_transformers.params_json import adapt_params

CONFIG: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
H200 = DEVICE_SPEEDS["NVIDIA H200"]


def cost_of(config: dict[str, Any], **more: Any) -> DecoderCost:
    cost = decoder_cost(config, 2, **more)
    assert cost is not None
    return cost


def preset_cost(name: str, *, with_draft: bool = False) -> PairCost:
    """The preset's configuration goes through the adapter of params.json."""
    preset: Preset = PRESETS[name]
    is_fp8 = "quantization" in preset.params

    def config(params: dict[str, Any]) -> dict[str, Any]:
        problems: list[str] = []
        adapted = adapt_params(params, problems, role="target", special_id=lambda text: None)
        assert not problems
        return dict(adapted.config)

    target = cost_of(config(dict(preset.params)), is_fp8=is_fp8)
    if not with_draft:
        return PairCost(target)
    return PairCost(target, cost_of(config(preset.draft_params), is_fp8=is_fp8, is_draft=True), 3)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_those_of_the_matrices(tied: bool) -> None:
    with torch.device("meta"):
        model = MistralForCausalLM(MistralConfig(**CONFIG, tie_word_embeddings=tied))
    matrices = {name: weight for name, weight in model.named_parameters() if weight.dim() == 2}
    if not tied:
        del matrices["model.embed_tokens.weight"]  # gives rows, is not multiplied
    cost = cost_of(CONFIG | {"tie_word_embeddings": tied})
    assert cost.body_bytes + cost.head_bytes == 2 * sum(weight.numel() for weight in matrices.values())


def test_products_are_those_that_torch_counts() -> None:
    """torch counts full attention, so the context of every row is the whole prompt here."""
    with torch.device("meta"):
        model = MistralForCausalLM(MistralConfig(**CONFIG, attn_implementation="eager"))
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(2, 24, dtype=torch.long))
    cost = cost_of(CONFIG)
    expected = cost.flops(rows=48, context=24) + 2 * 48 * cost.head_weights
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)  # the product that makes angles is in it


def test_kv_and_windows() -> None:
    full, windowed = cost_of(CONFIG), cost_of(CONFIG | {"sliding_window": 8})
    assert full.kv_bytes(20) == 20 * 3 * 2 * 2 * 16 * 2  # tokens, layers, k and v, heads, head size, bytes
    assert windowed.kv_bytes(20) == full.kv_bytes(8)
    mixed = cost_of(CONFIG | {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention", "x"]})
    assert mixed.windows == (None, 8, None)
    assert windowed.prompt_flops(20) - 20 * 2 * windowed.body_weights == 3 * windowed.row_flops * sum(
        min(row, 8) for row in range(1, 21)
    )


@pytest.mark.parametrize("more", [{"kv_lora_rank": 8}, {"num_local_experts": 4}, {"n_routed_experts": 4}])
def test_other_kinds_of_models_have_no_floor(more: dict[str, int]) -> None:
    assert decoder_cost(CONFIG | more, 2) is None


@pytest.mark.parametrize(
    ("name", "shape", "with_draft", "length", "gpus", "floor_ms"),
    [
        ("7b", BS_1, False, 1.0, 1, 3.31),
        ("7b", BS_8, False, 1.0, 1, 3.5),
        ("7b", BS_64, False, 1.0, 1, 4.5),
        ("7b", BS_1, True, 3.0, 1, 1.28),
        ("24b", BS_1, False, 1.0, 1, 10.6),
        ("128b-fp8", BS_1, False, 1.0, 4, 7.3),
    ],
)
def test_floors_that_were_computed_by_hand(
    name: str, shape: Shape, with_draft: bool, length: float, gpus: int, floor_ms: float
) -> None:
    """The table of targets has two digits; it leaves out KV at batch 1."""
    step = preset_cost(name, with_draft=with_draft).decode_step(shape.batch_size, shape.input_len + 128)
    assert 1000 * step.seconds(H200) / length / gpus == pytest.approx(floor_ms, rel=0.015)


def test_a_step_with_drafts_is_the_sum_of_its_passes() -> None:
    target, draft = cost_of(CONFIG), cost_of(CONFIG | {"num_hidden_layers": 1}, is_draft=True)
    assert draft.body_weights == target.body_weights // 3 + 2 * 40 * 40
    alone, pair = PairCost(target), PairCost(target, draft, 3)
    added = pair.decode_step(2, 10).num_bytes - alone.decode_step(2, 10).num_bytes
    assert added == 3 * (draft.body_bytes + target.head_bytes + 2 * draft.kv_bytes(10))
    # 2 requests: 4 rows each of the target; of the draft 4 rows in the first pass and one in each of the others
    expected = target.flops(8, 10) + 2 * 8 * 96 * 40 + draft.flops(2 * 6, 10) + 2 * 6 * 96 * 40
    assert pair.decode_step(2, 10).flops == expected


def test_the_slower_of_memory_and_products_counts() -> None:
    speed = DeviceSpeed(1000.0, 100.0)
    assert Work(1e9, 1.0).seconds(speed) == 1e-3
    assert Work(1.0, 1e12).seconds(speed) == 0.01
    assert Work(1e9, 1e12).seconds(speed, counts_flops=False) == 1e-3
    assert Work(1e9, 1e12).seconds(DeviceSpeed(1000.0)) == 1e-3
