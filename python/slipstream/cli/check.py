"""`slipstream check`: what a checkpoint is, from its files and headers. No weights are read, torch is not loaded."""

import json
import math
import sys
from collections import Counter
from typing import Any

from slipstream.config.flags import AUTO, FlagParser
from slipstream.errors import CheckpointError
from slipstream.hf_transformers.embedded import embedded_path
from slipstream.hf_transformers.inspect import inspect_checkpoint
from slipstream.hf_transformers.spec import ModelSpec

# bytes of each dtype that safetensors headers name
WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2, "I8": 1,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
HEADER_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def main(args: list[str]) -> int:
    """Returns 0 when the checkpoint can be served and 1 when it cannot."""
    parser = FlagParser(prog="slipstream check", description="Look at a checkpoint without loading it.")
    parser.add_argument("--model-path", help="the folder; none: the model that ships with Slipstream")
    parser.add_argument("--tokenizer-path", help="folder or file of the tokenizer")
    parser.add_argument("--load-format", default=AUTO, choices=(AUTO, "mistral", "hf"), help="which layout to look for")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(args)
    path = options.model_path or str(embedded_path())
    problems: list[str] = []
    report: dict[str, Any] = {}
    try:
        spec = inspect_checkpoint(path, load_format=options.load_format, tokenizer_path=options.tokenizer_path)
        report = describe(spec)
    except CheckpointError as error:
        problems = list(error.problems)
    if options.json:
        print(json.dumps({"target": {**report, "problems": problems} if report else {"problems": problems}}, indent=2))
    elif problems:
        print(f"{path} cannot be served:", *problems, sep="\n  - ", file=sys.stderr)
    else:
        show(report)
    return 1 if problems else 0


def describe(spec: ModelSpec) -> dict[str, Any]:
    """The facts about a checkpoint, as plain data. Sizes in bytes; KV per token at the stored dtype."""
    num_elements = {tensor.name: math.prod(tensor.shape) for tensor in spec.tensors}
    width = WIDTHS[HEADER_NAMES[spec.dtype]]
    heads = spec.config["num_key_value_heads"] * spec.config["head_dim"]
    return {
        "path": spec.path,
        "layout": spec.layout,
        "architecture": spec.architecture,
        "dtype": spec.dtype,
        "parameters": sum(num_elements.values()),
        "weight_bytes": sum(num_elements[tensor.name] * WIDTHS[tensor.dtype] for tensor in spec.tensors),
        "kv_bytes_per_token": 2 * spec.config["num_hidden_layers"] * heads * width,
        "context_length": spec.context_length,
        "vocab_size": spec.vocab_size,
        "tokenizer": f"{spec.tokenizer_kind}: {spec.tokenizer_path}",
        "eos_token_ids": list(spec.eos_token_ids),
        "tensors": dict(Counter(tensor.dtype for tensor in spec.tensors)),
        "files": sorted({tensor.file for tensor in spec.tensors}),
        "config": spec.config,
    }


def show(report: dict[str, Any]) -> None:
    """Print one fact a line."""
    for name, value in report.items():
        print(f"{name:20} {value}")
