"""A report of `slipstream check` as tables in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

FACTS = (
    "path", "layout", "layout_reason", "kind", "architecture", "dtype", "quantization", "context_length", "vocab_size",
    "tokenizer", "eos_token_ids", "images", "shares", "needs",
)  # fmt: skip
FIT_CAPTION = (
    "It fits when a request of the whole context has room beside the weights, the draft's among them. Activations, "
    "CUDA graphs and libraries are not counted: some GiB, which a start names one by one."
)


def show(report: Mapping[str, Any], console: Console) -> None:
    """Facts, adapted configuration and stored groups of each checkpoint that could be read, then what fits.

    Of a draft's configuration only what differs from its target's.
    """
    target, draft = report["target"], report.get("draft")
    if target["architecture"] is not None:
        title = "target: configuration"
        console.print(_facts("target", target), _config(title, target, {}), _groups("target", target))
    if draft is not None and draft["architecture"] is not None:
        known = (target["config"] or {}).get("text_config", target["config"] or {})
        title = "draft: configuration, where it is not the target's" if known else "draft: configuration"
        console.print(_facts("draft", draft), _config(title, draft, known), _groups("draft", draft))
    if report["fit"]:
        console.print(_fit(report["fit"]))
    for tp, reason in report["not_shared"].items():
        console.print(Text(f"not on {tp} GPUs: {reason}"))


def _table(title: str, *columns: str, caption: str | None = None) -> Table:
    """A column whose name ends in * holds numbers."""
    table = Table(title=Text(title), title_justify="left", title_style="bold", caption=caption, caption_justify="left")
    for column in columns:
        table.add_column(column.removesuffix("*"), overflow="fold", justify="right" if column.endswith("*") else "left")
    return table


def _facts(role: str, part: Mapping[str, Any]) -> Table:
    table = _table(role, "", "")
    table.show_header = False
    for name in FACTS:
        if part.get(name) not in (None, []):
            table.add_row(name.replace("_", " "), Text(_shown(part[name])))
    table.add_row("parameters", f"{part['parameters']:,}")
    table.add_row("weights", f"{size(part['weight_bytes'])} ({part['weight_bytes']:,} bytes)")
    table.add_row("KV per token", f"{part['kv_bytes_per_token']:,} bytes")
    return table


def _config(title: str, part: Mapping[str, Any], known: Mapping[str, Any]) -> Table:
    """Every value that is not `known` with where it comes from; the keys of an object stand under its name."""
    table = _table(title, "key", "value", "from")
    for path, value in _flat(part["config"]):
        if path[0] in known and known[path[0]] == part["config"][path[0]]:
            continue
        shown = "" if isinstance(value, dict) else _shown(value)
        table.add_row("  " * (len(path) - 1) + path[-1], Text(shown), Text(part["origins"].get(".".join(path), "")))
    return table


def _groups(role: str, part: Mapping[str, Any]) -> Table:
    table = _table(f"{role}: what is stored", "parameters", "stored as", "number*", "size*")
    for group in part["groups"]:
        table.add_row(group["name"], group["storage"], f"{group['parameters']:,}", size(group["weight_bytes"]))
    return table


def _fit(rows: list[Mapping[str, Any]]) -> Table:
    table = _table(
        "what fits on each GPU",
        "GPUs*",
        "GiB each*",
        "weights GiB*",
        "KV bytes per token*",
        "KV tokens*",
        "contexts*",
        "fits",
        caption=FIT_CAPTION,
    )
    for row in rows:
        table.add_row(
            str(row["tp"]),
            f"{row['gpu_memory_gib']:g}",
            f"{row['weight_gib']:.1f}",
            f"{row['kv_bytes_per_token']:,}",
            f"{row['kv_tokens']:,}",
            f"{row['full_contexts']:.1f}",
            "yes" if row["fits"] else "no",
        )
    return table


def size(num_bytes: int) -> str:
    """
    >>> size(128_249_393_984), size(3_145_728), size(512)
    ('119.4 GiB', '3.0 MiB', '0.5 KiB')
    """
    value, unit = num_bytes / 2**10, "KiB"
    for larger in ("MiB", "GiB"):
        if value >= 1000:
            value, unit = value / 2**10, larger
    return f"{value:,.1f} {unit}"


def _flat(config: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """
    >>> _flat({"a": 1, "b": {"c": 2}})
    [(('a',), 1), (('b',), {'c': 2}), (('b', 'c'), 2)]
    """
    rows: list[tuple[tuple[str, ...], Any]] = []
    for key, value in config.items():
        rows.append(((*prefix, key), value))
        if isinstance(value, dict):
            rows.extend(_flat(value, (*prefix, key)))
    return rows


def _shown(value: Any) -> str:
    """
    >>> _shown(["full_attention"] * 3), _shown({"patch_size": 14})
    ('3 x full_attention', 'patch_size 14')
    """
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    if isinstance(value, list) and len(value) > 2 and len(set(value)) == 1:
        return f"{len(value)} x {value[0]}"
    if isinstance(value, list):
        return ", ".join(str(inner) for inner in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
