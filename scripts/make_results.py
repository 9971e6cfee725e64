"""Write bench/RESULTS.md from bench/results/*.jsonl and bench/notes/*.md, and the figures in docs_new/performance.mdx.

scripts/plot_roofline.py draws the picture of that page; run it first where figures have changed.
"""

import sys
from pathlib import Path

from slipstream.bench import notes, performance_page, results, results_page
from slipstream.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parent.parent
H200 = "one_batch_h200"  # the group whose figures the page shows
PLOT = "images/roofline_h200.png"  # below docs_new/


def main(repository: Path = REPOSITORY) -> int:
    """Returns 1 when a line cannot be read; the pages are then left as they were."""
    bench, docs = repository / "bench", repository / "docs_new"
    page = docs / "performance.mdx"
    try:
        groups = {path.stem: results.read(path) for path in sorted((bench / "results").glob("*.jsonl"))}
        found = notes.read_notes(bench / "notes")
        text = results_page.render(groups, found)
        performance = page_text(page, groups.get(H200, []), found) if page.is_file() else None
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    bench.mkdir(exist_ok=True)
    (bench / "RESULTS.md").write_text(text, encoding="utf-8")
    if performance is not None:
        page.write_text(performance, encoding="utf-8")
    print(f"bench/RESULTS.md: {sum(map(len, groups.values()))} results in {len(groups)} groups")
    return 0


def page_text(page: Path, figures: list[results.Result], found: list[notes.Note]) -> str:
    """docs_new/performance.mdx as it has to be."""
    plot = f"/{PLOT}" if (page.parent / PLOT).is_file() else None
    return performance_page.put_figures(page.read_text(encoding="utf-8"), figures, found, plot)


if __name__ == "__main__":
    sys.exit(main())
