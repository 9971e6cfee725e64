"""A checkpoint of a gigabyte and more goes to the GPU in parallel: the same weights as on the CPU, and how fast."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from slipstream.hf_transformers.spec import TensorInfo
from slipstream.models.tables import TABLES
from slipstream.weights.dummy import dummy_weights
from slipstream.weights.load import load_weights
from slipstream.weights.name_map import NameMap, ParameterShape
from slipstream.weights.parameters import Parameters

pytestmark = pytest.mark.gpu

GPU, CPU = torch.device("cuda"), torch.device("cpu")
CONFIG = {
    "vocab_size": 32768,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 3,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
}
NUM_FILES = 4
HEADER_DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def tables() -> tuple[dict[str, ParameterShape], NameMap]:
    of_mistral = TABLES.get("MistralForCausalLM")
    return of_mistral.parameter_shapes(CONFIG), of_mistral.name_map(CONFIG, "mistral")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, tuple[TensorInfo, ...]]]:
    """1.9 GB in bf16, of which one file's norms and the head are in fp32. wq and wk are interleaved."""
    folder = tmp_path_factory.mktemp("checkpoint")
    shapes, name_map = tables()
    files: list[dict[str, torch.Tensor]] = [{} for _ in range(NUM_FILES)]
    for index, rule in enumerate(name_map.rules):
        shape = shapes[rule.parameter]
        generator = torch.Generator(GPU).manual_seed(index)
        values = torch.randn(shape.rows(rule.part)[1], *shape.shape[1:], generator=generator, device=GPU)
        is_wide = rule.parameter in ("head", "norm")
        files[index * NUM_FILES // len(name_map.rules)][rule.checkpoint] = (
            values if is_wide else values.bfloat16()
        ).cpu()
    infos = []
    for number, tensors in enumerate(files):
        name = f"consolidated-{number + 1:05d}-of-{NUM_FILES:05d}.safetensors"
        save_file(tensors, folder / name)
        infos += [TensorInfo(key, tuple(each.shape), HEADER_DTYPES[each.dtype], name) for key, each in tensors.items()]
    yield folder, tuple(infos)
    for file in folder.iterdir():
        file.unlink()


def load(folder: Path, infos: tuple[TensorInfo, ...], device: torch.device) -> Parameters:
    shapes, name_map = tables()
    reports: list[tuple[int, int]] = []
    parameters = load_weights(
        str(folder), infos, name_map, shapes, None, torch.bfloat16, device, lambda *report: reports.append(report)
    )
    assert reports == [(done, len(infos)) for done in range(1, len(infos) + 1)]
    return parameters


def test_the_same_weights_as_on_the_cpu_and_how_fast(checkpoint: tuple[Path, tuple[TensorInfo, ...]]) -> None:
    folder, infos = checkpoint
    num_bytes = sum(file.stat().st_size for file in folder.iterdir())
    expected = load(folder, infos, CPU)
    rates = []
    for _ in range(3):
        torch.cuda.synchronize()
        before = torch.cuda.memory_reserved()
        started = time.perf_counter()
        found = load(folder, infos, GPU)
        torch.cuda.synchronize()
        rates.append(num_bytes / (time.perf_counter() - started) / 1e9)
        held = torch.cuda.memory_reserved() - before
    print(f"\n{num_bytes / 1e9:.2f} GB from files in the page cache: {', '.join(f'{rate:.1f}' for rate in rates)} GB/s")
    assert held < 1.2 * 2 * sum(math.prod(shape.shape) for shape in tables()[0].values())  # nothing beside the weights
    for name in tables()[0]:
        assert torch.equal(expected.tensor(name), found.tensor(name).cpu()), name


def test_dummy_weights_of_24b_are_drawn_in_seconds_without_copies() -> None:
    """The 24B geometry with a tenth of its layers, so that it fits beside others; one kernel for each parameter."""
    config = CONFIG | {
        "vocab_size": 131072, "hidden_size": 5120, "intermediate_size": 32768, "num_hidden_layers": 4,
    }  # fmt: skip
    shapes = TABLES.get("MistralForCausalLM").parameter_shapes(config)
    num_values = sum(math.prod(shape.full_shape) for shape in shapes.values())
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.synchronize()
    started = time.perf_counter()
    parameters = dummy_weights(shapes, set(), None, torch.bfloat16, GPU, 0, lambda done, total: None)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    print(
        f"\n{num_values / 1e9:.2f} G random weights in {seconds:.2f} s: {seconds / num_values * 23.6e9:.1f} s for 24B"
    )
    assert torch.cuda.max_memory_allocated() - before < 2 * num_values * 1.01
    assert seconds / num_values * 23.6e9 < 5
    weight = parameters.tensor("layers.0.gate_up")
    assert abs(float(weight.float().var()) * 5120 - 1) < 0.01
