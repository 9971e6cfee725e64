"""The figures in docs_new/performance.mdx: what stands between two marks comes from bench/results/ and nowhere else."""

from collections.abc import Sequence

from slipstream.bench.floor_table import floor_table
from slipstream.bench.notes import Note, notes_section
from slipstream.bench.results import Result
from slipstream.bench.results_page import split_latest
from slipstream.errors import ConfigError

BEGIN = "{/* figures: written by make results from bench/results/ */}"
END = "{/* end of figures */}"
NOTHING = "Nothing has been measured on an H200 yet: `bench/results/one_batch_h200.jsonl` has no line."


def put_figures(page: str, results: Sequence[Result], notes: Sequence[Note], plot: str | None) -> str:
    """The page with the latest figures; `plot` is the picture's address, None where there is none.

    Raises ConfigError for a page without the two marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"the page has no lines {BEGIN!r} and {END!r} between which figures are to stand")
    return "\n\n".join([f"{before}{BEGIN}", *_figures(results, notes, plot), f"{END}{after}"])


def _figures(results: Sequence[Result], notes: Sequence[Note], plot: str | None) -> list[str]:
    latest, _ = split_latest(results)
    if not latest:
        return [NOTHING]
    machines = ", ".join(dict.fromkeys(result.machine for result in latest))
    parts = [f"{machines}:", mdx(floor_table(latest)), *map(mdx, map(str.strip, notes_section(latest, notes)))]
    return [*parts, f"![Roofline: products per second over products per byte]({plot})"] if plot else parts


def mdx(markdown: str) -> str:
    """Markdown as MDX takes it: "<" would begin an element, "{" an expression. Code keeps them.

    >>> mdx("| <= 3.6 | `a < b` |")
    '| ≤ 3.6 | `a < b` |'
    """
    parts = markdown.split("`")
    for index in range(0, len(parts), 2):
        text = parts[index].replace("<=", "≤").replace(">=", "≥")
        parts[index] = text.replace("<", "&lt;").replace("{", "&#123;")
    return "`".join(parts)
