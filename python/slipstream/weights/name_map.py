"""Declares which checkpoint tensor fills which part of which parameter. Data only: nothing is read here.

A model lists its parameters (`ParameterShape`) and, for each layout, a table of `Rule`s. A rule's names may hold
`{layer}`, which stands for every layer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Transform = Literal["as_is", "interleaved_to_half"]


@dataclass(frozen=True)
class ParameterShape:
    """One tensor of a model as the model holds it.

    A fused parameter names its `parts` in order with the number of rows (dimension 0) that each one fills.
    """

    shape: tuple[int, ...]
    parts: tuple[tuple[str, int], ...] = ()
    init: Literal["normal", "ones"] = "normal"  # of random weights: variance 1/columns, or a norm's neutral weight

    def rows(self, part: str | None) -> tuple[int, int]:
        """(start, length) of a part, or of the whole.

        >>> ParameterShape((8, 4), parts=(("q", 4), ("k", 2), ("v", 2))).rows("k")
        (4, 2)
        """
        if part is None:
            return 0, self.shape[0]
        start = 0
        for name, length in self.parts:
            if name == part:
                return start, length
            start += length
        raise KeyError(part)


@dataclass(frozen=True)
class Rule:
    """The tensor `checkpoint` fills `part` (None: all) of `parameter`.

    `head_dim` is what the transform "interleaved_to_half" needs.
    """

    checkpoint: str
    parameter: str
    part: str | None = None
    transform: Transform = "as_is"
    head_dim: int = 0


@dataclass(frozen=True)
class NameMap:
    """The table of one layout. `ignored` are regular expressions of tensor names that carry nothing to load."""

    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Placement:
    """Where one checkpoint tensor goes: rows [start, start + shape[0]) of `parameter`."""

    parameter: str
    start: int
    shape: tuple[int, ...]  # which the checkpoint tensor must have
    transform: Transform
    head_dim: int


def expand_layers(shapes: Mapping[str, ParameterShape], num_layers: int) -> dict[str, ParameterShape]:
    """Replace each name with `{layer}` by one name for each layer."""
    return {name: shapes[pattern] for pattern in shapes for name in _each_layer(pattern, num_layers)}


def placements(name_map: NameMap, shapes: Mapping[str, ParameterShape], num_layers: int) -> dict[str, Placement]:
    """Checkpoint name -> placement, for every tensor that the checkpoint must hold.

    Raises ValueError when the table does not fill every row of every parameter exactly once: an error in the model
    file, not in a checkpoint.
    """
    expected: dict[str, Placement] = {}
    for rule in name_map.rules:
        for checkpoint, parameter in zip(
            _each_layer(rule.checkpoint, num_layers), _each_layer(rule.parameter, num_layers), strict=True
        ):
            start, length = shapes[parameter].rows(rule.part)
            if checkpoint in expected:
                raise ValueError(f"two rules read {checkpoint}")
            expected[checkpoint] = Placement(
                parameter, start, (length, *shapes[parameter].shape[1:]), rule.transform, rule.head_dim
            )
    _check_filled_once(expected.values(), shapes)
    return expected


def _each_layer(pattern: str, num_layers: int) -> Sequence[str]:
    return [pattern.format(layer=layer) for layer in range(num_layers)] if "{layer}" in pattern else [pattern]


def _check_filled_once(expected: Iterable[Placement], shapes: Mapping[str, ParameterShape]) -> None:
    filled: dict[str, list[tuple[int, int]]] = {name: [] for name in shapes}
    for placement in expected:
        filled[placement.parameter].append((placement.start, placement.start + placement.shape[0]))
    for name, spans in filled.items():
        ends = [0, *(end for _, end in sorted(spans))]
        if [begin for begin, _ in sorted(spans)] != ends[:-1] or ends[-1] != shapes[name].shape[0]:
            raise ValueError(f"the rules fill rows {sorted(spans)} of {name}, which has {shapes[name].shape[0]}")
