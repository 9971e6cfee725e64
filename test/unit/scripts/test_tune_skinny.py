"""Which configs are tried, which is chosen, and what stands in the table in the end."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from slipstream.kernels.skinny_configs import ROW_BUCKETS, SkinnyConfig, choose_config, parse_table
from support.scripts import load_script

FAST = SkinnyConfig("gemv", 2, 1024, 4, 2)
SAME_BITS = SkinnyConfig("gemv", 4, 1024, 4, 3)
OTHER = SkinnyConfig("gemv", 2, 1024, 2, 2)


@pytest.fixture(scope="module")
def tune() -> ModuleType:
    return load_script("tune_skinny")


def test_the_most_valuable_cases_come_first_and_all_come(tune: ModuleType) -> None:
    groups = tune.ordered_groups(None, ROW_BUCKETS)
    assert [(group[0].shape.model, group[0].rows) for group in groups[:3]] == [("7b", 1), ("7b", 4), ("24b", 1)]
    assert len({case for group in groups for case in group}) == len(tune.SHAPES) * len(ROW_BUCKETS)
    assert [group[0].rows for group in tune.ordered_groups("7b", [8, 1])] == [1, 8]


def test_a_case_is_tried_with_at_most_24_configs(tune: ModuleType) -> None:
    for group in tune.ordered_groups(None, ROW_BUCKETS):
        for case in group:
            first = tune.first_configs(case, processors=132)
            timings = [tune.Timing(config, float(us)) for us, config in enumerate(first)]
            more = tune.next_configs(case, timings)
            assert first and len(set(first) | set(more)) == len(first) + len(more) <= 24


def test_one_rows_bits_decide_between_configs_as_fast(tune: ModuleType) -> None:
    timings = [tune.Timing(OTHER, 10.0), tune.Timing(SAME_BITS, 10.1), tune.Timing(FAST, 12.0)]
    assert tune.choose(timings, None).config == OTHER
    assert tune.choose(timings, FAST).config == SAME_BITS
    assert tune.choose([tune.Timing(OTHER, 10.0), tune.Timing(SAME_BITS, 11.0)], FAST).config == OTHER


def test_a_table_is_added_to_and_read_by_the_kernels(tune: ModuleType, tmp_path: Path) -> None:
    qkv, o = tune.SHAPES[0], tune.SHAPES[1]
    path = tmp_path / "table.json"
    assert tune.read_entries(path) == []
    old = [tune.Result(tune.Case(shape, 1), tune.Timing(OTHER, 20.0), 30.0).entry for shape in (qkv, o)]
    tune.write_table(path, "NVIDIA H200", tune.merge([], old))
    new = tune.Result(tune.Case(o, 1), tune.Timing(FAST, 10.0), 9.0).entry
    tune.write_table(path, "NVIDIA H200", tune.merge(tune.read_entries(path), [new]))
    table = parse_table(path.read_text("utf-8"))
    assert json.loads(path.read_text("utf-8"))["device"] == "NVIDIA H200" and len(table) == 2
    assert choose_config(table, qkv.op, 1, qkv.n, qkv.k) == OTHER
    assert choose_config(table, o.op, 1, o.n, o.k) is None
