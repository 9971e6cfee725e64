"""Run `slipstream bench ...` and keep its figures in bench/results/<benchmark>.jsonl.

python scripts/record_bench.py one-batch --batch-size 1 16
python scripts/record_bench.py serving --concurrency 1 16
python scripts/record_bench.py speculative
python scripts/record_bench.py --rows rows.jsonl --machine "NVIDIA H200" serving --device cuda

With --rows nothing is run: the rows are those that this benchmark with these flags wrote on another machine.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from slipstream.bench import results
from slipstream.bench.rows import read_rows
from slipstream.bench.tables import describe_drafts
from slipstream.cli.main import main as slipstream

FIGURES = {"ttft_s": "s", "tpot_ms": "ms", "decode_tok_s": "tokens/s"}
SPECULATIVE_FIGURES = {"acceptance_length": "tokens/step", "decode_tok_s": "tokens/s", "ratio": "x"}
MODEL_WITH_TARGETS = "slipstream-embedded"
LENGTH_TARGETS = {"questions": ">= 3.5", "source": ">= 2.2"}  # at K = 3, a chain
RATIO_TARGETS = {"questions": ">= 1.5", "source": ">= 1.0"}  # as served by default, one request at a time
REPOSITORY = Path(__file__).resolve().parent.parent


def to_results(
    benchmark: str, rows: list[dict[str, Any]], command: str, machine: str | None = None
) -> list[results.Result]:
    """One Result for each figure of each row that could be measured, on `machine` or on this one."""
    figures = SPECULATIVE_FIGURES if benchmark == "speculative" else FIGURES
    return [
        results.Result(
            date=results.today(),
            commit=results.current_commit(REPOSITORY),
            machine=machine or results.this_machine(),
            command=command,
            case=f"{describe(benchmark, row)}: {name}",
            value=row[name],
            unit=unit,
            compared_with=compared_with(row) if name == "ratio" else None,
            target=target(row, name) if benchmark == "speculative" else None,
            details=details(benchmark, row),
        )
        for row in rows
        for name, unit in figures.items()
        if row[name] is not None
    ]


def target(row: dict[str, Any], name: str) -> str | None:
    """What a figure of `bench speculative` has to reach, if anything."""
    if row["model"] != MODEL_WITH_TARGETS or row["topk"] != 1 or row["num_steps"] != 3:
        return None
    if name == "acceptance_length" and not row["adaptive"]:
        return LENGTH_TARGETS.get(row["workload"])
    if name == "ratio" and row["adaptive"] and row["batch_size"] == 1:
        return RATIO_TARGETS.get(row["workload"])
    return None


def compared_with(row: dict[str, Any]) -> str:
    """The other server of `bench speculative`."""
    return f"no drafts, same requests in turns: {row['plain_tok_s']:.1f} tok/s"


def details(benchmark: str, row: dict[str, Any]) -> dict[str, Any]:
    """What explains a figure later."""
    names = ["engine", "speculative", "acceptance_length"]
    if benchmark == "speculative":
        names = ["engine", "dtype", "num_requests", "num_failed", "accepted", "position_rates", "ttft_s", "tpot_ms",
                 "plain_ttft_s", "plain_tpot_ms", "turn_ratios"]  # fmt: skip
    return {name: row[name] for name in names}


def describe(benchmark: str, row: dict[str, Any]) -> str:
    """What was measured, in words that stay the same from run to run."""
    load = f"{row['batch_size']} at once" if row["batch_size"] is not None else f"{row['request_rate']:g} requests/s"
    if benchmark == "speculative":
        drafts = describe_drafts(row["num_steps"], row["topk"], row["adaptive"])
        return f"{benchmark}, {row['model']}, {row['workload']}, {load}, {drafts}"
    return f"{benchmark}, {row['model']}, {load}, {row['input_len']:.0f} tokens in, {row['output_len']:.0f} out"


def main(arguments: list[str]) -> int:
    """The exit code of the benchmark."""
    if arguments[:1] == ["--rows"]:
        _, rows_file, _, machine, *arguments = arguments
        keep(arguments, read_rows(Path(rows_file)), machine)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rows.jsonl"
        code = slipstream(["bench", *arguments, "--output-json", str(output)])
        if code == 0:
            keep(arguments, read_rows(output), None)
    return code


def keep(arguments: list[str], rows: list[dict[str, Any]], machine: str | None) -> None:
    """Rows of `slipstream bench ARGUMENTS`."""
    command = results.command_line("slipstream", ["bench", *arguments])
    file = REPOSITORY / "bench" / "results" / f"{arguments[0]}.jsonl"
    results.append(file, to_results(arguments[0], rows, command, machine))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
