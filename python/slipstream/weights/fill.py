"""Where the values of a checkpoint tensor go in the parameters of one rank."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from slipstream.hf_transformers.safetensors_header import ITEM_BYTES
from slipstream.hf_transformers.spec import TensorInfo
from slipstream.weights.accounting import Placement
from slipstream.weights.name_map import ParameterShape
from slipstream.weights.sharding import Span, column_span, row_spans
from slipstream.weights.stream import Stretch
from slipstream.weights.transforms import apply_transform

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
}


class Filler:
    """Copies checkpoint tensors, or one rank's share of them, into the parameters."""

    def __init__(
        self, parameters: dict[str, Tensor], shapes: Mapping[str, ParameterShape], rank: int, num_ranks: int
    ) -> None:
        self.parameters = parameters
        self._shapes = shapes  # whole
        self._rank, self._num_ranks = rank, num_ranks

    def read(self, place: Placement, stream: Any) -> Any:
        """From an open safetensors file: the tensor, or a slice of which only this rank's share is to be read."""
        if place.role != "values" or not self._is_divided(place):
            return stream.get_tensor(place.rule.checkpoint)
        return stream.get_slice(place.rule.checkpoint)

    def fill(self, place: Placement, whole: Any) -> None:
        """Put in a tensor, or a slice of one. Raises ValueError for a scale that is no positive number."""
        if place.role != "values":
            whole = _scale(place, whole)
        target, row_dim = self._target(place), self._row_dim(place)
        for start, tensor in self._pieces(place, whole, row_dim):
            part = target.narrow(row_dim, start, tensor.shape[row_dim])
            # Scales come from ordinary memory, of which CUDA keeps a copy: waiting would be for the copies before.
            if place.rule.transform != "as_is" or tensor.dtype != part.dtype:
                tensor = tensor.to(part.device, non_blocking=True)
            part.copy_(apply_transform(tensor, place.rule), non_blocking=True)

    def as_stored(self, place: Placement, info: TensorInfo, start: int) -> list[Stretch] | None:
        """The bytes of the file that are bytes of the parameter, one for one, where the tensor begins at `start`; None
        where values have to be moved or converted.
        """
        target, row_dim = self._target(place), self._row_dim(place)
        is_same = place.role == "values" and place.rule.transform == "as_is" and _DTYPES[info.dtype] == target.dtype
        is_whole = info.shape == target.shape and not self._is_divided(
            place
        )  # then even a tensor of all experts is one piece
        has_columns_cut = self._is_divided(place) and self._shapes[place.parameter].shard == "columns"
        if not is_same or has_columns_cut or (row_dim and not is_whole):
            return None
        if is_whole:
            return [Stretch(start, as_bytes(target))]
        row_bytes = math.prod(info.shape[1:]) * ITEM_BYTES[info.dtype]
        return [
            Stretch(start + span.source * row_bytes, as_bytes(target.narrow(0, span.target, span.length)))
            for span in self._spans(place)
        ]

    def _target(self, place: Placement) -> Tensor:
        target = self.parameters[place.parameter]
        return target if place.rule.expert is None else target[place.rule.expert]

    def _row_dim(self, place: Placement) -> int:
        return 1 if len(place.shape) > len(self._shapes[place.parameter].shape) else 0

    def _is_divided(self, place: Placement) -> bool:
        return self._num_ranks > 1 and self._shapes[place.parameter].shard != "none"

    def _spans(self, place: Placement) -> list[Span]:
        return row_spans(self._shapes[place.parameter], place.rule.part, self._rank, self._num_ranks)

    def _pieces(self, place: Placement, whole: Any, row_dim: int) -> Iterator[tuple[int, Tensor]]:
        """(row of the parameter, rows of the checkpoint tensor that go there)."""
        shape = self._shapes[place.parameter]
        begin, end = column_span(shape, self._rank, self._num_ranks)
        for span in self._spans(place):
            rows = slice(span.source, span.source + span.length)
            index = (slice(None),) * row_dim + (rows,)
            if shape.shard == "columns":
                index += (slice(None),) * (len(shape.shape) - 2) + (slice(begin, end),)
            yield span.target, whole[index]


class TensorLoad:
    """One tensor of a file that is streamed in; see Load.

    Its bytes go straight into the parameter where they are the parameter's own. Else they wait in a tensor of their
    own, on the device, or, where they are scales to be looked at, on the host, and end() puts them in.
    """

    def __init__(self, filler: Filler, place: Placement, info: TensorInfo, start: int) -> None:
        self._filler, self._place, self._info, self._start = filler, place, info, start
        self._waiting: Tensor | None = None
        self.num_bytes = math.prod(info.shape) * ITEM_BYTES[info.dtype]

    @property
    def file(self) -> str:
        return self._info.file

    def begin(self) -> list[Stretch]:
        if (stretches := self._filler.as_stored(self._place, self._info, self._start)) is not None:
            return stretches
        device = self._filler.parameters[self._place.parameter].device if self._place.role == "values" else "cpu"
        self._waiting = torch.empty(self.num_bytes, dtype=torch.uint8, device=device)
        return [Stretch(self._start, self._waiting)]

    def end(self) -> None:
        if self._waiting is not None:
            whole = self._waiting.view(_DTYPES[self._info.dtype]).view(self._info.shape)
            self._waiting = None
            self._filler.fill(self._place, whole)


def as_bytes(tensor: Tensor) -> Tensor:
    """A contiguous tensor as uint8 [n], sharing its memory."""
    return tensor.view(-1).view(torch.uint8)


def _scale(place: Placement, tensor: Tensor) -> Tensor:
    """The scales as the parameter holds them, whole: fp32, one for each row or block."""
    tensor = tensor.float()
    if not bool(torch.isfinite(tensor).all()) or not bool((tensor > 0).all()):
        raise ValueError(f"{place.rule.checkpoint} holds a scale that is zero, negative or not finite")
    if place.role == "block_scale":
        return tensor
    *experts, rows = place.shape
    if tensor.numel() == 1:
        return tensor.reshape(()).expand(place.shape)
    numbers = tensor.reshape(*experts, -1)
    if numbers.shape[-1] == rows:
        return numbers
    if numbers.shape[-1] == 1:
        return numbers.expand(place.shape)
    return numbers.repeat_interleave(torch.tensor(place.parts), dim=-1)
