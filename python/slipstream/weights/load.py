"""Fills a model's parameters from safetensors files: every parameter once, every tensor accounted for."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from slipstream.errors import CheckpointError
from slipstream.hf_transformers.spec import TensorInfo
from slipstream.weights.name_map import NameMap, ParameterShape, Placement, placements
from slipstream.weights.transforms import apply_transform

ReportProgress = Callable[[int, int], None]  # (done, total) tensors


def load_weights(
    folder: str,
    tensors: Sequence[TensorInfo],
    name_map: NameMap,
    shapes: Mapping[str, ParameterShape],
    num_layers: int,
    dtype: torch.dtype,
    device: torch.device,
    progress: ReportProgress,
) -> dict[str, Tensor]:
    """The parameters of a model by name, converted to `dtype`, on `device`.

    Streams: one checkpoint tensor at a time is in memory beside the parameters.
    Raises CheckpointError, before anything is read, that lists all missing, unexpected and misshaped tensors.
    """
    expected = placements(name_map, shapes, num_layers)
    if problems := account(tensors, expected, name_map):
        raise CheckpointError(folder, problems)
    parameters = {name: torch.empty(shape.shape, dtype=dtype, device=device) for name, shape in shapes.items()}
    wanted = sorted((tensor for tensor in tensors if tensor.name in expected), key=lambda tensor: tensor.file)
    done = 0
    for file, group in groupby(wanted, key=lambda tensor: tensor.file):
        try:
            with safe_open(Path(folder) / file, framework="pt") as stream:
                for tensor in group:
                    _fill(parameters, expected[tensor.name], stream.get_tensor(tensor.name))
                    done += 1
                    progress(done, len(wanted))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(folder, [f"{file} cannot be read: {error}"]) from error
    return parameters


def account(tensors: Sequence[TensorInfo], expected: Mapping[str, Placement], name_map: NameMap) -> list[str]:
    """One sentence for each missing, unexpected or misshaped tensor."""
    found = {tensor.name: tensor.shape for tensor in tensors}
    ignored = [re.compile(pattern) for pattern in name_map.ignored]
    missing = [
        f"missing tensor {name} of shape {list(expected[name].shape)}" for name in expected.keys() - found.keys()
    ]
    unexpected = [
        f"unexpected tensor {name} of shape {list(found[name])}"
        for name in found.keys() - expected.keys()
        if not any(pattern.fullmatch(name) for pattern in ignored)
    ]
    misshaped = [
        f"{name} has shape {list(found[name])}; the configuration asks for {list(expected[name].shape)}"
        for name in expected.keys() & found.keys()
        if found[name] != expected[name].shape
    ]
    return [*sorted(missing), *sorted(unexpected), *sorted(misshaped)]


def _fill(parameters: Mapping[str, Tensor], placement: Placement, tensor: Tensor) -> None:
    rows = parameters[placement.parameter].narrow(0, placement.start, placement.shape[0])
    rows.copy_(apply_transform(tensor, placement))
