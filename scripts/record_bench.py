"""Run `slipstream bench ...` and keep its figures in bench/results/<benchmark>.jsonl.

python scripts/record_bench.py one-batch --batch-size 1 16
python scripts/record_bench.py serving --concurrency 1 16
python scripts/record_bench.py speculative
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


def to_results(benchmark: str, rows: list[dict[str, Any]], command: str) -> list[results.Result]:
    """One Result for each figure of each row that could be measured."""
    figures = SPECULATIVE_FIGURES if benchmark == "speculative" else FIGURES
    return [
        results.Result(
            date=results.today(),
            commit=results.current_commit(REPOSITORY),
            machine=results.this_machine(),
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
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rows.jsonl"
        code = slipstream(["bench", *arguments, "--output-json", str(output)])
        if code == 0:
            command = results.command_line("slipstream", ["bench", *arguments])
            rows = to_results(arguments[0], read_rows(output), command)
            results.append(REPOSITORY / "bench" / "results" / f"{arguments[0]}.jsonl", rows)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
