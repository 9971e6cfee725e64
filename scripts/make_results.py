"""Write bench/RESULTS.md from bench/results/*.jsonl."""

import sys
from pathlib import Path

from slipstream.bench import results, results_page
from slipstream.errors import ConfigError

BENCH = Path(__file__).resolve().parent.parent / "bench"


def main(folder: Path = BENCH) -> int:
    """Returns 1 when a line cannot be read; the page is then left as it was."""
    try:
        groups = {path.stem: results.read(path) for path in sorted((folder / "results").glob("*.jsonl"))}
        page = results_page.render(groups)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    folder.mkdir(exist_ok=True)
    (folder / "RESULTS.md").write_text(page, encoding="utf-8")
    print(f"bench/RESULTS.md: {sum(map(len, groups.values()))} results in {len(groups)} groups")
    return 0


if __name__ == "__main__":
    sys.exit(main())
