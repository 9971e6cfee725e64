"""Prompts for the embedded pair: questions it was trained on and sources that it has to complete."""

import importlib.util
from pathlib import Path
from typing import Any

NAMES = (
    "textwrap.dedent", "os.path.join", "json.dumps", "shutil.copytree", "itertools.chain", "functools.partial",
    "re.compile", "collections.Counter", "random.choice", "math.gcd", "pathlib.Path", "string.Template",
    "heapq.merge", "bisect.insort", "csv.reader", "glob.glob", "time.sleep", "logging.getLogger",
)  # fmt: skip
SOURCES = ("textwrap", "json.decoder", "heapq", "bisect", "shlex")


def question(index: int) -> list[dict[str, Any]]:
    """A chat about a function of the standard library."""
    return [{"role": "user", "content": f"What does {NAMES[index % len(NAMES)]} do?"}]


def source(index: int, length: int) -> str:
    """`length` characters of a module of the standard library, another place for each index."""
    spec = importlib.util.find_spec(SOURCES[index % len(SOURCES)])
    assert spec is not None and spec.origin is not None
    text = Path(spec.origin).read_text(encoding="utf-8")
    begin = 397 * index % (len(text) - length)
    return text[begin : begin + length]


def long_question(index: int) -> list[dict[str, Any]]:
    """A question after a source as the system's message: some hundreds of tokens."""
    return [{"role": "system", "content": source(index, 900)}, *question(index)]
