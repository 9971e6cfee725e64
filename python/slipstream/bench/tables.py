"""Benchmark rows as tables for the terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from slipstream.bench.rows import OneBatchRow, ServingRow, SpeculativeRow
from slipstream.bench.statistics import Summary


def number(value: float | None, digits: int = 1) -> str:
    """A figure, or a dash where nothing was measured."""
    return "-" if value is None else f"{value:,.{digits}f}"


def one_batch_table(rows: Sequence[OneBatchRow]) -> Table:
    """One line for each shape; times are the best of the runs. The floor is that of a further token where there is one,
    else that of the first.
    """
    table = Table(title="one batch at a time (best of the runs)", title_justify="left")
    headers = (
        "batch",
        "in",
        "out",
        "TTFT\nms",
        "prefill\ntok/s",
        "per token\nms",
        "decode\ntok/s",
        "floor\nms",
        "% of\nfloor",
    )
    for name in headers:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        is_prefill = row.output_len == 1
        table.add_row(
            str(row.batch_size), f"{row.input_len:g}", f"{row.output_len:g}",
            number(1000 * row.ttft_s if row.ttft_s is not None else None), number(row.prefill_tok_s, 0),
            number(row.tpot_ms, 3), number(row.decode_tok_s),
            number(row.prefill_floor_ms if is_prefill else row.floor_ms, 2),
            number(row.prefill_floor_percent if is_prefill else row.floor_percent, 0),
        )  # fmt: skip
    return table


def one_batch_line(row: OneBatchRow) -> str:
    """One shape in one line, for a run that may be cut off."""
    words = [f"bs {row.batch_size}, in {row.input_len:g}, out {row.output_len:g}:"]
    if row.tpot_ms is not None:
        words += [f"{row.tpot_ms:.3f} ms per token,", f"{number(row.decode_tok_s, 0)} tok/s,"]
    ttft_ms = None if row.ttft_s is None else 1000 * row.ttft_s
    return " ".join([*words, f"first token after {number(ttft_ms)} ms, prefill {number(row.prefill_tok_s, 0)} tok/s"])


def serving_table(row: ServingRow) -> Table:
    """The times of the requests that succeeded; how many did not stands above them."""
    num_ok = row.num_requests - row.num_failed
    title = (
        f"{describe_load(row)}: {num_ok} ok, {row.num_failed} failed, {number(row.requests_per_s, 2)} requests/s, "
        f"{number(row.decode_tok_s)} tokens/s"
    )
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for name in ("", "mean", "p50", "p90", "p99"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("time to first token, ms", *_cells(row.ttft_s_summary, 1000, 1))
    table.add_row("time per further token, ms", *_cells(row.tpot_ms_summary, 1, 2))
    table.add_row("whole answer, s", *_cells(row.e2e_s_summary, 1, 3))
    return table


def speculative_tables(rows: Sequence[SpeculativeRow]) -> list[Table]:
    """A table for each workload and number of requests at once, with two lines for each case."""
    tables = []
    for workload, batch_size in dict.fromkeys((row.workload, row.batch_size) for row in rows):
        group = [row for row in rows if (row.workload, row.batch_size) == (workload, batch_size)]
        tables.append(_speculative_table(f"{workload}, {batch_size} at once", group))
    return tables


def describe_drafts(num_steps: int, topk: int, adaptive: bool) -> str:
    """How a server drafted, in words that stay the same from run to run.

    >>> describe_drafts(3, 1, False), describe_drafts(5, 4, True)
    ('K 3', 'K up to 5, topk 4, adaptive')
    """
    tree = f", topk {topk}" if topk > 1 else ""
    return f"K up to {num_steps}{tree}, adaptive" if adaptive else f"K {num_steps}{tree}"


def _speculative_table(title: str, rows: Sequence[SpeculativeRow]) -> Table:
    """Where 80 columns are too few, long descriptions and many shares wrap, figures never."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("", "acceptance\nlength", "% kept at\n1, 2, ...", "ms per\ntoken", "tok/s", "ratio"):
        table.add_column(name, justify="right" if name else "left", no_wrap=bool(name) and not name.startswith("%"))
    for row in rows:
        table.add_row(
            describe_drafts(row.num_steps, row.topk, row.adaptive), number(row.acceptance_length, 2),
            " ".join(number(100 * rate, 0) for rate in row.position_rates) or "-",
            number(row.tpot_ms, 2), number(row.decode_tok_s), number(row.ratio, 2),
        )  # fmt: skip
        table.add_row("  without drafts", "", "", number(row.plain_tpot_ms, 2), number(row.plain_tok_s), "")
    return table


def describe_load(row: ServingRow) -> str:
    """How the requests came."""
    cap = f"{row.concurrency} at once" if row.concurrency is not None else "no limit at once"
    return cap if row.request_rate is None else f"{row.request_rate:g} per second, {cap}"


def _cells(summary: Summary | None, factor: float, digits: int) -> list[str]:
    if summary is None:
        return ["-"] * 4
    return [number(factor * value, digits) for value in (summary.mean, summary.p50, summary.p90, summary.p99)]
