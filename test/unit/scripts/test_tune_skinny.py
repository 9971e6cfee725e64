"""Which configs are tried, which is chosen, and what stands in the table in the end."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from slipstream.kernels.skinny_configs import ROW_BUCKETS, SkinnyConfig, choose_config, parse_table
from support.scripts import load_script

FAST = SkinnyConfig("gemv", 2, 1024, 4, 2)
SAME_BITS = SkinnyConfig("gemv", 4, 1024, 4, 3)
OTHER = SkinnyConfig("gemv", 2, 1024, 2, 2)
MMA = SkinnyConfig("mma", 16, 256, 4, 4)


@pytest.fixture(scope="module")
def tune() -> ModuleType:
    return load_script("tune_skinny")


def test_the_most_valuable_cases_come_first_and_all_come(tune: ModuleType) -> None:
    groups = tune.ordered_groups(None, ROW_BUCKETS)
    assert [(group[0].shape.model, group[0].rows) for group in groups[:3]] == [("7b", 1), ("7b", 4), ("24b", 1)]
    assert len({case for group in groups for case in group}) == len(tune.SHAPES) * len(ROW_BUCKETS)
    assert [group[0].rows for group in tune.ordered_groups("7b", [8, 1])] == [1, 8]


def test_operations_choose_cases_alone_or_behind_a_norm(tune: ModuleType) -> None:
    def names(*ops: str) -> list[str]:
        return [case.shape.name for group in tune.ordered_groups("7b", [4], ops) for case in group]

    assert names("norm_linear", "gate_up") == ["qkv", "gate_up"] and "o" in names("linear")


def test_a_case_is_tried_with_at_most_40_candidates(tune: ModuleType) -> None:
    for group in tune.ordered_groups(None, ROW_BUCKETS):
        for case in group:
            first = tune.first_candidates(case, processors=132)
            timings = [tune.Timing(candidate, float(us)) for us, candidate in enumerate(reversed(first))]
            more = tune.next_candidates(case, timings)
            assert first and len(set(first) | set(more)) == len(first) + len(more) <= 40
            assert not any(c.config.kind == "mma" and c.op.startswith("norm") for c in (*first, *more))


def test_one_rows_bits_decide_between_configs_as_fast(tune: ModuleType) -> None:
    other, same_bits, fast = (tune.Candidate("linear", config) for config in (OTHER, SAME_BITS, FAST))
    timings = [tune.Timing(fast, 12.0), tune.Timing(same_bits, 10.1), tune.Timing(other, 10.0)]
    assert [t.us for t in tune.ranked(timings, None)] == [10.0, 10.1, 12.0]
    assert [t.us for t in tune.ranked(timings, FAST)] == [10.1, 10.0, 12.0]
    assert tune.ranked([tune.Timing(other, 10.0), tune.Timing(same_bits, 11.0)], FAST)[0].config == OTHER


@pytest.mark.parametrize(
    ("fused_us", "plain_us", "cublas_us", "fused", "plain"),
    [(10, 11, 12, True, True), (11, 10, 12, False, True), (11, 12, 10, False, False), (10, 12, 11, True, False)],
)
def test_behind_a_norm_an_entry_says_what_is_faster_than_all_that_is_asked_after_it(
    tune: ModuleType, fused_us: float, plain_us: float, cublas_us: float, fused: bool, plain: bool
) -> None:
    qkv = tune.SHAPES[0]
    timings = [
        tune.Timing(tune.Candidate("norm_linear", FAST), fused_us),
        tune.Timing(tune.Candidate("linear", MMA), plain_us),
    ]
    result = tune.Result(tune.Case(qkv, 4), tuple(tune.ranked(timings, None)), cublas_us)
    table = parse_table(json.dumps({"entries": result.entries}))
    assert choose_config(table, "norm_linear", 4, qkv.n, qkv.k) == (FAST if fused else None)
    assert choose_config(table, "linear", 4, qkv.n, qkv.k) == (MMA if plain else None)


def test_a_table_is_added_to_and_read_by_the_kernels(tune: ModuleType, tmp_path: Path) -> None:
    qkv, o = tune.SHAPES[0], tune.SHAPES[1]
    path = tmp_path / "table.json"
    assert tune.read_entries(path) == []

    def entries(shape: Any, config: SkinnyConfig, us: float, cublas_us: float) -> list[dict[str, Any]]:
        timing = tune.Timing(tune.Candidate(shape.op, config), us)
        found: list[dict[str, Any]] = tune.Result(tune.Case(shape, 1), (timing,), cublas_us).entries
        return found

    old = [*entries(qkv, OTHER, 20.0, 30.0), *entries(o, OTHER, 20.0, 30.0)]
    tune.write_table(path, "NVIDIA H200", tune.merge([], old))
    new = entries(o, FAST, 10.0, 9.0)
    tune.write_table(path, "NVIDIA H200", tune.merge(tune.read_entries(path), new))
    table = parse_table(path.read_text("utf-8"))
    assert json.loads(path.read_text("utf-8"))["device"] == "NVIDIA H200" and len(table) == 2
    assert choose_config(table, qkv.op, 1, qkv.n, qkv.k) == OTHER
    assert choose_config(table, o.op, 1, o.n, o.k) is None
