"""Headers of safetensors files: which tensors a checkpoint holds, without reading one of them.

The format: 8 bytes little-endian header length, that many bytes of JSON, then the tensors' bytes without a gap.
"""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

from slipstream.hf_transformers.json_file import MAX_INDEX_BYTES, read_json_object
from slipstream.hf_transformers.spec import TensorInfo

MAX_HEADER_BYTES = 100_000_000  # the limit that the safetensors library sets
ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
_MAX_REPORTED = 20  # problems of one file; more add nothing
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")


def tensor_bytes(tensor: TensorInfo) -> int:
    """Size of one tensor's data."""
    return math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]


def read_tensors(folder: Path, stem: str, problems: list[str]) -> tuple[TensorInfo, ...]:
    """All tensors of the layout whose files begin with `stem` ("consolidated" or "model"), sorted by name.

    The files are those that `stem`.safetensors.index.json names, else all `stem`*.safetensors. Missing shards,
    tensors that two files hold, and files that disagree with the index become sentences in `problems`.
    """
    index_path = folder / f"{stem}.safetensors.index.json"
    weight_map = _read_index(index_path, problems) if index_path.is_file() else None
    present = {path.name for path in folder.glob(f"{stem}*.safetensors") if path.is_file()}
    if weight_map is None:
        files = present
        problems.extend(f"{name} is missing" for name in _missing_shards(present))
    else:
        files = set(weight_map.values())
        problems.extend(f"{name} is missing, but {index_path.name} names it" for name in sorted(files - present))
    tensors: dict[str, TensorInfo] = {}
    for name in sorted(files & present):
        for tensor in read_header(folder / name, problems):
            if tensor.name in tensors:
                problems.append(f"{tensor.name} is in both {tensors[tensor.name].file} and {name}")
            tensors[tensor.name] = tensor
    if weight_map is not None and files <= present:
        problems.extend(_disagreements(index_path.name, weight_map, tensors)[:_MAX_REPORTED])
    return tuple(tensors[name] for name in sorted(tensors))


def read_header(path: Path, problems: list[str]) -> list[TensorInfo]:
    """The tensors of one file. What breaks the format becomes a sentence in `problems`, and the result is empty."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_len = int.from_bytes(file.read(8), "little")
            if size < 8 or header_len > size - 8:
                problems.append(f"{path.name} is truncated: it has {size} bytes and a header of {header_len}")
                return []
            if header_len > MAX_HEADER_BYTES:
                problems.append(f"{path.name} has a header of {header_len} bytes; the limit is {MAX_HEADER_BYTES}")
                return []
            header = json.loads(file.read(header_len), object_pairs_hook=_unique)
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
        return []
    except (ValueError, RecursionError) as error:
        problems.append(f"{path.name} has a damaged header: {str(error)[:200]}")
        return []
    if not isinstance(header, dict):
        problems.append(f"{path.name} has a damaged header: not an object")
        return []
    found: list[str] = []
    entries = sorted(_entries(header, path.name, found), key=lambda entry: entry[1:])
    if not found:
        found.extend(_gaps(entries, size - 8 - header_len, path.name))
    problems.extend(found[:_MAX_REPORTED])
    return [] if found else [tensor for tensor, _, _ in entries]


def _entries(header: dict[str, Any], file: str, problems: list[str]) -> Iterable[tuple[TensorInfo, int, int]]:
    """(tensor, begin, end) of each well-formed entry."""
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        fields = entry if isinstance(entry, dict) else {}
        dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            problems.append(f"{file}: {name[:200]} has the unknown dtype {dtype!r:.40}")
        elif not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
            problems.append(f"{file}: {name[:200]} has no valid shape and data_offsets")
        elif offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[dtype]:
            problems.append(
                f"{file}: {name[:200]} of shape {shape} and dtype {dtype} "
                f"cannot fill bytes {offsets[0]} to {offsets[1]}"
            )
        else:
            yield TensorInfo(name, tuple(shape), dtype, file), offsets[0], offsets[1]


def _gaps(entries: list[tuple[TensorInfo, int, int]], data_bytes: int, file: str) -> Iterable[str]:
    """Tensors must follow each other without gap or overlap and fill the file."""
    position = 0
    for tensor, begin, end in entries:
        if begin != position:
            what = "overlaps the tensor before it" if begin < position else "leaves a gap before it"
            yield f"{file}: {tensor.name[:200]} at byte {begin} {what}, which ends at {position}"
        position = end
    if position != data_bytes:
        what = "truncated" if position > data_bytes else "longer than its header says"
        yield f"{file} is {what}: its tensors take {position} bytes, the file has {data_bytes} for them"


def _is_sizes(value: Any) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) <= 16
        and all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**63 for size in value)
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return values


def _read_index(path: Path, problems: list[str]) -> dict[str, str] | None:
    """tensor name -> file name, or None when the index is unusable (reported)."""
    index = read_json_object(path, MAX_INDEX_BYTES, problems)
    if index is None:
        return None
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        problems.append(f"{path.name} has no weight_map from tensor names to file names")
        return None
    outside = sorted({file for file in weight_map.values() if Path(file).name != file or file in ("", ".", "..")})
    if outside:
        problems.append(f"{path.name} names files outside the folder: {', '.join(outside[:5])}")
        return None
    return weight_map


def _missing_shards(files: Iterable[str]) -> list[str]:
    """Of names like x-00001-of-00003.safetensors, those that must exist too.

    >>> _missing_shards(["m-00001-of-00003.safetensors", "m-00003-of-00003.safetensors"])
    ['m-00002-of-00003.safetensors']
    """
    present, missing = set(files), set()
    for file in present:
        if match := _SHARD.search(file):
            width, total = len(match[1]), min(int(match[2]), 10_000)
            prefix = file[: match.start()]
            missing |= {f"{prefix}-{number:0{width}}-of-{match[2]}.safetensors" for number in range(1, total + 1)}
    return sorted(missing - present)[:_MAX_REPORTED]


def _disagreements(index: str, weight_map: dict[str, str], tensors: dict[str, TensorInfo]) -> list[str]:
    problems = []
    for name in sorted(weight_map.keys() | tensors.keys()):
        listed, found = weight_map.get(name), tensors[name].file if name in tensors else None
        if listed != found:
            problems.append(
                f"{index} says that {name[:200]} is in {listed or 'no file'}; it is in {found or 'no file'}"
            )
    return problems
