"""Run `slipstream bench ...` and keep its figures in bench/results/<benchmark>.jsonl.

python scripts/record_bench.py one-batch --batch-size 1 16
python scripts/record_bench.py serving --concurrency 1 16
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from slipstream.bench import results
from slipstream.cli.main import main as slipstream

FIGURES = {"ttft_s": "s", "tpot_ms": "ms", "decode_tok_s": "tokens/s"}
REPOSITORY = Path(__file__).resolve().parent.parent


def to_results(benchmark: str, rows: list[dict[str, Any]], command: str) -> list[results.Result]:
    """One Result for each figure of each row that could be measured."""
    return [
        results.Result(
            date=results.today(),
            commit=results.current_commit(REPOSITORY),
            machine=results.this_machine(),
            command=command,
            case=f"{describe(benchmark, row)}: {name}",
            value=row[name],
            unit=unit,
            details={"engine": row["engine"]},
        )
        for row in rows
        for name, unit in FIGURES.items()
        if row[name] is not None
    ]


def describe(benchmark: str, row: dict[str, Any]) -> str:
    """What was measured, in words that stay the same from run to run."""
    load = f"{row['batch_size']} at once" if row["batch_size"] is not None else f"{row['request_rate']:g} requests/s"
    return f"{benchmark}, {row['model']}, {load}, {row['input_len']:.0f} tokens in, {row['output_len']:.0f} out"


def main(arguments: list[str]) -> int:
    """The exit code of the benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rows.json"
        code = slipstream(["bench", *arguments, "--output-json", str(output)])
        if code == 0:
            command = results.command_line("slipstream", ["bench", *arguments])
            rows = to_results(arguments[0], json.loads(output.read_text()), command)
            results.append(REPOSITORY / "bench" / "results" / f"{arguments[0]}.jsonl", rows)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
