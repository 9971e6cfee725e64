"""Keep the figures of `slipstream bench one-batch --output-json ROWS` that was run on an H200, beside their targets.

    python scripts/record_h200.py rows.jsonl --start warm

The rows may come from another machine, so they bring date, command and device; the commit is this checkout's unless
--commit names another. They go to bench/results/one_batch_h200.jsonl. --start says whether compiled kernels were on
disk already when the engine started; without it the time of the start is not kept.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from slipstream.bench import results
from slipstream.bench.one_batch import Shape
from slipstream.bench.rows import read_rows
from slipstream.bench.targets import (
    START_GOAL,
    START_PEERS,
    START_PRESET,
    UNITS,
    Figure,
    Target,
    case_name,
    find_targets,
)
from slipstream.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parent.parent
GROUP = "one_batch_h200"


def to_results(rows: list[dict[str, Any]], commit: str, start: str | None = None) -> list[results.Result]:
    """One Result for each target of each row, else for its main figure; with `start` one for each engine start."""
    found = []
    for row in rows:
        shape = shape_of(row)
        targets = find_targets(
            row["preset"], shape, acceptance_length=row["simulated_length"], num_drafts=row["num_drafts"],
            num_gpus=row["num_gpus"],
        )  # fmt: skip
        figures: list[tuple[Figure, Target | None]] = [(target.figure, target) for target in targets]
        for figure, target in figures or [("prefill_tok_s" if shape.output_len == 1 else "tpot_ms", None)]:
            if value_of(row, figure) is not None:
                found.append(figure_result(row, figure, target, commit))
    return [*found, *(start_results(rows, commit, start) if start is not None else [])]


def shape_of(row: dict[str, Any]) -> Shape:
    return Shape(int(row["batch_size"]), int(row["input_len"]), int(row["output_len"]))


def value_of(row: dict[str, Any], figure: Figure) -> float | None:
    value = 1000 * row["ttft_s"] if figure == "ttft_ms" else row[figure]
    return None if value is None else float(value)


def floor_of(row: dict[str, Any], figure: Figure) -> float | None:
    """The floor in the figure's own unit; of tokens per second a ceiling."""
    if figure == "tpot_ms":
        floor = row["floor_ms"]
    elif figure == "ttft_ms":
        floor = row["prefill_floor_ms"]
    else:
        floor_ms = row["prefill_floor_ms"]
        floor = None if floor_ms is None else 1000 * row["batch_size"] * row["input_len"] / floor_ms
    return None if floor is None else float(floor)


def figure_result(row: dict[str, Any], figure: Figure, target: Target | None, commit: str) -> results.Result:
    is_decode = figure == "tpot_ms"
    length = row["simulated_length"] or row["acceptance_length"] if row["num_drafts"] else None
    details = {
        "engine": row["engine"],
        "floor": floor_of(row, figure),
        "floor_percent": row["floor_percent" if is_decode else "prefill_floor_percent"],
        "peers": target.peers if target is not None else {},
        "remark": target.remark if target is not None else "",
        "stretch": target.stretch if target is not None else None,
        "median": row["tpot_median_ms"] if is_decode else 1000 * row["ttft_median_s"],
        "one_token_runs_s": row["one_token_runs_s"],
        "all_tokens_runs_s": row["all_tokens_runs_s"],
        "num_drafts": row["num_drafts"],
        "acceptance_length": row["acceptance_length"],
        "work": work_of(row, is_decode=is_decode, acceptance_length=length),
    }
    value = value_of(row, figure)
    assert value is not None
    name = case_name(row["preset"] or row["model"], figure, shape_of(row), length, row["num_gpus"])
    return results.Result(
        date=row["date"],
        commit=commit,
        machine=machine_of(row),
        command=row["command"],
        case=target.case if target is not None else name,
        value=value,
        unit=UNITS[figure],
        compared_with=describe_peers(target.peers, UNITS[figure], target.remark) if target is not None else None,
        target=target.goal if target is not None else None,
        details=details,
    )


def work_of(row: dict[str, Any], *, is_decode: bool, acceptance_length: float | None) -> dict[str, float] | None:
    """What a roofline needs: bytes and products of a step, and its seconds. None where the floor is not known."""
    name = "step" if is_decode else "prefill"
    if row[f"{name}_bytes"] is None:
        return None
    seconds = row["tpot_ms"] / 1000 * (acceptance_length or 1.0) if is_decode else row["ttft_s"]
    return {"bytes": row[f"{name}_bytes"], "flops": row[f"{name}_flops"], "seconds": seconds}


def start_results(rows: list[dict[str, Any]], commit: str, start: str) -> list[results.Result]:
    """One for each engine start of the preset whose start has a target."""
    starts = {(row["command"], row["start_s"]): row for row in rows if row["preset"] is not None}
    found = []
    for row in starts.values():
        is_compared = row["preset"] == START_PRESET and not row["num_drafts"]
        with_draft = " + EAGLE" if row["num_drafts"] else ""
        found.append(
            results.Result(
                date=row["date"],
                commit=commit,
                machine=machine_of(row),
                command=row["command"],
                case=f"{row['preset']}{with_draft}, random weights: start to ready, {start} compile cache",
                value=row["start_s"],
                unit="s",
                compared_with=describe_peers(START_PEERS, "s") if is_compared else None,
                target=START_GOAL if is_compared and start == "warm" else None,
                details={"engine": row["engine"], "peers": START_PEERS if is_compared else {}},
            )
        )
    return found


def machine_of(row: dict[str, Any]) -> str:
    name = row["device_name"] or row["device"]
    return f"{row['num_gpus']} x {name}" if row["num_gpus"] > 1 else str(name)


def describe_peers(peers: dict[str, float], unit: str, remark: str = "") -> str | None:
    """
    >>> describe_peers({"a": 4.6, "b": 4.7}, "ms")
    'a: 4.6 ms, b: 4.7 ms'
    """
    text = ", ".join(f"{name}: {value:g} {unit}" for name, value in peers.items())
    return (f"{text} ({remark})" if remark else text) or None


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Keep figures that were measured on an H200.")
    parser.add_argument("rows", type=Path, nargs="+", help="files of --output-json")
    parser.add_argument("--commit", help="of the code that was measured; default: this checkout's")
    parser.add_argument("--start", choices=("warm", "cold"), help="whether compiled kernels were on disk")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "bench" / "results" / f"{GROUP}.jsonl")
    flags = parser.parse_args(args)
    commit = flags.commit or results.current_commit(REPOSITORY)
    try:
        rows = [row for path in flags.rows for row in read_rows(path)]
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    found = to_results(rows, commit, flags.start)
    results.append(flags.output, found)
    for result in found:
        print(f"{result.case}: {result.value:.4g} {result.unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
