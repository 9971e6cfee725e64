"""Reading in several threads gives what reading tensor by tensor gives. Here the destination is ordinary memory."""

import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from slipstream.errors import CheckpointError
from slipstream.hf_transformers.spec import Quantization, TensorInfo
from slipstream.weights import load as loading
from slipstream.weights.name_map import NameMap, ParameterShape, Rule, for_experts
from slipstream.weights.stream import Stretch, stream_in
from support.fp8 import NATIVE, is_linear, quantise_checkpoint, write_tensors

CPU = torch.device("cpu")
SHAPES = {
    "qk": ParameterShape((24, 12), parts=(("q", 16), ("k", 8)), quantizable=True, shard="rows", unit=4),
    "down": ParameterShape((12, 24), quantizable=True, shard="columns"),
    "experts": ParameterShape((12, 12), parts=(("gate", 6), ("up", 6)), num_experts=4, shard="rows"),
    "all_experts": ParameterShape((12, 12), parts=(("gate", 6), ("up", 6)), num_experts=4, shard="rows"),
    "norm": ParameterShape((12,), init="ones"),
    "number": ParameterShape((1,)),
}
ROTATED = {"transform": "interleaved_to_half", "group": 4, "rotated": 4}
MAP = NameMap(
    (
        Rule("wq.weight", "qk", "q", **ROTATED),
        Rule("wk.weight", "qk", "k", **ROTATED),
        Rule("down.weight", "down"),
        *for_experts(4, (Rule("e.{expert}.w1", "experts", "gate"), Rule("e.{expert}.w3", "experts", "up"))),
        Rule("mlp.gate", "all_experts", "gate"),
        Rule("mlp.up", "all_experts", "up"),
        Rule("norm", "norm"),
        Rule("number", "number"),
    ),
    ignored=(r"unused\..+",),
)


def random_tensors(dtypes: Callable[[int], torch.dtype]) -> dict[str, Tensor]:
    tensors = {"unused.first": torch.zeros(7, dtype=torch.uint8)}  # so that nothing is aligned
    for index, rule in enumerate(MAP.rules):
        shape = SHAPES[rule.parameter]
        experts = (shape.num_experts,) if shape.num_experts and rule.expert is None else ()
        torch.manual_seed(index)
        tensors[rule.checkpoint] = torch.randn(*experts, shape.rows(rule.part)[1], *shape.shape[1:]).to(dtypes(index))
    return tensors


def write(folder: Path, tensors: dict[str, Tensor], num_files: int = 3) -> tuple[TensorInfo, ...]:
    names = sorted(tensors)
    return tuple(
        info
        for file in range(num_files)
        for info in write_tensors(folder, {n: tensors[n] for n in names[file::num_files]}, f"m{file}.safetensors")
    )


def load(folder: Path, infos: tuple[TensorInfo, ...], **changes: object) -> dict[str, Tensor]:
    arguments: dict[str, object] = dict(quantization=None, dtype=torch.bfloat16, device=CPU, progress=lambda *_: None)
    parameters = loading.load_weights(str(folder), infos, MAP, SHAPES, **(arguments | changes))  # type: ignore[arg-type]
    return parameters._tensors


@pytest.fixture
def in_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny pieces, so that every tensor has several and the threads get in each other's way."""
    monkeypatch.setattr(loading, "load_one_by_one", loading.load_in_parallel)
    sizes = dict(num_threads=3, piece_bytes=100, ahead_bytes=1500)
    monkeypatch.setattr(loading, "stream_in", functools.partial(stream_in, **sizes))


def compare(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype
        assert torch.equal(tensor.view(torch.uint8), found[name].view(torch.uint8)), name


FLOATS = (torch.bfloat16, torch.float32, torch.float16, torch.float64)


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("shift", range(4))
def test_dtypes_parts_experts_and_shards(
    tmp_path: Path, request: pytest.FixtureRequest, num_ranks: int, shift: int
) -> None:
    infos = write(tmp_path, random_tensors(lambda index: FLOATS[(index + shift) % 4]))
    ranks = [dict(rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    expected = [load(tmp_path, infos, **rank) for rank in ranks]
    request.getfixturevalue("in_parallel")
    for rank, tensors in zip(ranks, expected, strict=True):
        compare(tensors, load(tmp_path, infos, **rank))


@pytest.mark.parametrize("per", ["tensor", "row", (4, 5)])
def test_scales(tmp_path: Path, request: pytest.FixtureRequest, per: str) -> None:
    plain = random_tensors(lambda index: torch.float32)
    stored, _ = quantise_checkpoint(plain, is_linear, NATIVE, per)  # type: ignore[arg-type]
    infos = write(tmp_path, stored)
    quantization = Quantization("dynamic", block=None if isinstance(per, str) else per)
    expected = load(tmp_path, infos, quantization=quantization)
    request.getfixturevalue("in_parallel")
    compare(expected, load(tmp_path, infos, quantization=quantization))
    stored["down.qscale_weight"].view(-1)[0] = -1
    infos = write(tmp_path, stored)
    with pytest.raises(CheckpointError, match=r"m\d\.safetensors: down\.qscale_weight holds a scale that is zero"):
        load(tmp_path, infos, quantization=quantization)
    assert not leftover_threads()


def test_progress_counts_up_whatever_the_order_of_files(tmp_path: Path, in_parallel: None) -> None:
    """Progress counts up by one in the calling thread, and files may come in any order."""
    infos = write(tmp_path, random_tensors(lambda index: FLOATS[index % 4]), num_files=5)
    reports: list[tuple[int, int, int]] = []
    load(
        tmp_path,
        tuple(reversed(infos)),
        progress=lambda done, total: reports.append((done, total, threading.get_ident())),
    )
    assert reports == [(done, len(MAP.rules), threading.get_ident()) for done in range(1, len(MAP.rules) + 1)]


@pytest.mark.usefixtures("in_parallel")
class TestErrors:
    """The sentences of the slow way, and no thread left behind."""

    @pytest.fixture(autouse=True)
    def no_thread_stays(self) -> Iterator[None]:
        yield
        assert not leftover_threads()

    def test_a_file_that_is_no_longer_one(self, tmp_path: Path) -> None:
        infos = write(tmp_path, random_tensors(lambda index: torch.bfloat16))
        (tmp_path / "m1.safetensors").write_bytes(b"short")
        with pytest.raises(CheckpointError, match=r"m1\.safetensors cannot be read"):
            load(tmp_path, infos)

    def test_a_truncated_file(self, tmp_path: Path) -> None:
        infos = write(tmp_path, random_tensors(lambda index: torch.bfloat16))
        whole = (tmp_path / "m1.safetensors").read_bytes()
        (tmp_path / "m1.safetensors").write_bytes(whole[:-9])
        with pytest.raises(CheckpointError, match=r"m1\.safetensors cannot be read"):
            load(tmp_path, infos)

    def test_a_file_that_vanished(self, tmp_path: Path) -> None:
        infos = write(tmp_path, random_tensors(lambda index: torch.bfloat16))
        (tmp_path / "m2.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"m2\.safetensors cannot be read: .*[Nn]o such file"):
            load(tmp_path, infos)

    def test_another_tensor_of_the_same_name(self, tmp_path: Path) -> None:
        tensors = random_tensors(lambda index: torch.bfloat16)
        infos = write(tmp_path, tensors)
        write(tmp_path, tensors | {"norm": tensors["norm"].float()})
        with pytest.raises(CheckpointError, match=r"m\d\.safetensors: norm is another one than when"):
            load(tmp_path, infos)

    def test_a_tensor_that_is_gone(self, tmp_path: Path) -> None:
        tensors = random_tensors(lambda index: torch.bfloat16)
        infos = write(tmp_path, tensors, 1)
        del tensors["norm"]
        write(tmp_path, tensors, 1)
        with pytest.raises(CheckpointError, match="norm was there when the folder was inspected"):
            load(tmp_path, infos)

    def test_one_that_is_stopped_by_its_caller(self, tmp_path: Path) -> None:
        infos = write(tmp_path, random_tensors(lambda index: torch.bfloat16))

        def stop(done: int, total: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            load(tmp_path, infos, progress=stop)


@dataclass
class Bytes:
    """A load that notes what happens to it."""

    file: str
    start: int
    num_bytes: int
    notes: list[str]
    target: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    def begin(self) -> list[Stretch]:
        self.notes.append(f"begin {self.start}")
        self.target = torch.full((self.num_bytes,), 255, dtype=torch.uint8)
        half = self.num_bytes // 2  # two stretches, the later one first
        return [Stretch(self.start + half, self.target[half:]), Stretch(self.start, self.target[:half])]

    def end(self) -> None:
        self.notes.append(f"end {self.start}")


def test_what_is_begun_is_bounded(tmp_path: Path) -> None:
    data = torch.randint(0, 256, (1000,), dtype=torch.uint8)
    (tmp_path / "file").write_bytes(bytes(data.tolist()))
    notes: list[str] = []
    loads = [Bytes("file", start, 100, notes) for start in range(0, 1000, 100)]
    done = list(stream_in(str(tmp_path), loads, CPU, num_threads=4, piece_bytes=7, ahead_bytes=250))
    assert done == loads
    assert torch.equal(torch.cat([load.target for load in loads]), data)
    open_now, most = 0, 0
    for note in notes:
        open_now += 1 if note.startswith("begin") else -1
        most = max(most, open_now)
    assert (open_now, most) == (0, 2)


def test_a_tensor_larger_than_the_bound_and_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    loads = [Bytes("file", 0, 0, []), Bytes("file", 10, 90, []), Bytes("file", 100, 0, [])]
    list(stream_in(str(tmp_path), loads, CPU, num_threads=2, piece_bytes=50, ahead_bytes=20))
    assert loads[1].target.tolist() == list(range(10, 100))


def test_a_file_that_ends_while_it_is_read(tmp_path: Path) -> None:
    """As when somebody replaces it after its header was looked at."""
    (tmp_path / "good").write_bytes(bytes(1000))
    (tmp_path / "short").write_bytes(bytes(130))
    notes: list[str] = []
    loads = [Bytes("good", 0, 1000, notes), Bytes("short", 0, 200, notes), Bytes("good", 0, 1000, notes)]
    done = []
    with pytest.raises(CheckpointError, match=r"short cannot be read: it ends at byte 130, in the middle of a tensor"):
        for load in stream_in(str(tmp_path), loads, CPU, num_threads=2, piece_bytes=16):
            done.append(load)
    assert done == loads[:1]
    assert not leftover_threads()


def leftover_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("weights")]
