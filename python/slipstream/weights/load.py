"""Fills a model's parameters from safetensors files: every parameter once, every tensor accounted for."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from slipstream.errors import CheckpointError
from slipstream.hf_transformers.safetensors_header import ITEM_BYTES
from slipstream.hf_transformers.spec import Quantization, TensorInfo
from slipstream.weights.accounting import Placement, account, placements, quantised_parameters
from slipstream.weights.fill import Filler, TensorLoad
from slipstream.weights.name_map import NameMap, ParameterShape
from slipstream.weights.parameters import Parameters
from slipstream.weights.scales import scale_shapes
from slipstream.weights.sharding import shard_shapes
from slipstream.weights.stream import reading, stream_in

ReportProgress = Callable[[int, int], None]  # (done, total) tensors


def load_weights(
    folder: str,
    tensors: Sequence[TensorInfo],
    name_map: NameMap,
    shapes: Mapping[str, ParameterShape],
    quantization: Quantization | None,
    dtype: torch.dtype,
    device: torch.device,
    progress: ReportProgress,
    rank: int = 0,
    num_ranks: int = 1,
) -> Parameters:
    """The share that `rank` of `num_ranks` has of a model's parameters, on `device`: FP8 matrices as they are stored,
    with fp32 scales, all else converted to `dtype`.

    On a CPU tensor by tensor, in the order of the files: of the tensors one rank's share of one is in memory beside the
    parameters. Onto a GPU in several threads; see stream_in().
    Raises CheckpointError, before anything is read, that lists all that does not fit, and while reading for a scale
    that is no positive number; ConfigError where the ranks cannot share a parameter.
    """
    expected = placements(name_map, shapes, quantization, tensors)
    if problems := account(tensors, expected, name_map):
        raise CheckpointError(folder, problems)
    quantised = quantised_parameters(expected)
    whole, local = _all_shapes(shapes, quantization, quantised, num_ranks)
    filler = Filler(
        {
            name: torch.empty(shape.full_shape, dtype=_dtype_of(name, shapes, quantised, dtype), device=device)
            for name, shape in local.items()
        },
        whole,
        rank,
        num_ranks,
    )
    wanted = sorted((tensor for tensor in tensors if tensor.name in expected), key=lambda tensor: tensor.file)
    load = load_one_by_one if device.type == "cpu" else load_in_parallel
    load(folder, wanted, expected, filler, device, progress)
    return Parameters(filler.parameters, local, quantization, dtype)


def load_one_by_one(
    folder: str,
    wanted: Sequence[TensorInfo],
    expected: Mapping[str, Placement],
    filler: Filler,
    device: torch.device,
    progress: ReportProgress,
) -> None:
    """`wanted` are sorted by their files. Raises CheckpointError."""
    done = 0
    for file, group in groupby(wanted, key=lambda tensor: tensor.file):
        names = {tensor.name for tensor in group}
        with reading(folder, file), safe_open(Path(folder) / file, framework="pt") as stream:
            for name in filter(names.__contains__, _names_in(stream, names)):
                filler.fill(expected[name], filler.read(expected[name], stream))
                done += 1
                progress(done, len(wanted))


def load_in_parallel(
    folder: str,
    wanted: Sequence[TensorInfo],
    expected: Mapping[str, Placement],
    filler: Filler,
    device: torch.device,
    progress: ReportProgress,
) -> None:
    """As load_one_by_one(), with several threads. Returns when everything is on the device."""
    loads = []
    for file, group in groupby(wanted, key=lambda tensor: tensor.file):
        infos = {info.name: info for info in group}
        with reading(folder, file):
            starts = _starts(Path(folder) / file, infos)
        loads += [TensorLoad(filler, expected[name], infos[name], start) for name, start in starts.items()]
    with closing(stream_in(folder, loads, device)) as stream:
        for done, _ in enumerate(stream, start=1):
            progress(done, len(loads))


def _names_in(stream: Any, names: Collection[str]) -> list[str]:
    """All tensors of an open file in the order of their bytes; raises ValueError where one of `names` is missing."""
    stored: list[str] = stream.offset_keys()
    if lost := set(names).difference(stored):
        raise ValueError(f"{min(lost)} was there when the folder was inspected and is no longer")
    return stored


def _starts(path: Path, wanted: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Where the bytes of each wanted tensor begin in a file, in their order. The format leaves no gaps: safe_open()
    refuses a file that has any, or that does not end with its last tensor.
    """
    with path.open("rb") as file:
        position = 8 + int.from_bytes(file.read(8), "little")
    starts = {}
    with safe_open(path, framework="pt") as stream:
        for name in _names_in(stream, wanted.keys()):
            tensor = stream.get_slice(name)
            shape, dtype = tuple(tensor.get_shape()), tensor.get_dtype()
            if name in wanted:
                if (shape, dtype) != (wanted[name].shape, wanted[name].dtype):
                    raise ValueError(f"{name} is another one than when the folder was inspected")
                starts[name] = position
            position += math.prod(shape) * ITEM_BYTES[dtype]
    return starts


def _all_shapes(
    shapes: Mapping[str, ParameterShape],
    quantization: Quantization | None,
    quantised: set[str],
    num_ranks: int,
) -> tuple[dict[str, ParameterShape], dict[str, ParameterShape]]:
    """(whole, this rank's) shapes of all parameters and their scales."""
    whole = dict(shapes)
    if quantization is None:
        return whole, shard_shapes(whole, num_ranks)
    blocks = dict.fromkeys(quantised, quantization.block) if quantization.block else {}
    local = shard_shapes(whole, num_ranks, blocks)
    for name in quantised:
        whole |= {name + scale: shape for scale, shape in scale_shapes(shapes[name], quantization).items()}
        local |= {name + scale: shape for scale, shape in scale_shapes(local[name], quantization).items()}
    return whole, local


def _dtype_of(name: str, shapes: Mapping[str, ParameterShape], quantised: set[str], dtype: torch.dtype) -> torch.dtype:
    if name not in shapes:
        return torch.float32  # a scale
    return torch.float8_e4m3fn if name in quantised else dtype
