"""Results that have a floor as a Markdown table: ours, the floor, the faster of the other engines, the target."""

from collections.abc import Sequence

from slipstream.bench.results import Result, meets

COLUMNS = (
    "| case | ours | floor | % of floor | faster peer | ahead | target | | date | commit |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)
MARKS = {True: "met", False: "**missed**", None: ""}


def has_floors(results: Sequence[Result]) -> bool:
    """Whether these results are made for this table."""
    return any("peers" in result.details for result in results)


def floor_table(results: Sequence[Result]) -> str:
    """One line for each result. "ahead" is by what factor ours is faster than the faster peer."""
    return "\n".join([COLUMNS, *map(_line, results)])


def _line(result: Result) -> str:
    floor, percent = result.details.get("floor"), result.details.get("floor_percent")
    stretch = result.details.get("stretch")
    goal = f"{result.target} (stretch {stretch})" if stretch else result.target or ""
    cells = (
        result.case,
        f"{short(result.value)} {result.unit}",
        "" if floor is None else short(floor),
        "" if percent is None else f"{percent:.0f}",
        *_peer(result),
        goal,
        MARKS[meets(result.value, result.target)],
        result.date,
        result.commit,
    )
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _peer(result: Result) -> tuple[str, str]:
    """The faster peer, which comes first, and how far ahead of it ours is."""
    peers: dict[str, float] = result.details.get("peers", {})
    if not peers:
        return "", ""
    name, value = next(iter(peers.items()))
    is_rate = result.unit.endswith("/s")
    ahead = result.value / value if is_rate else value / result.value
    return f"{name}: {short(value)}", f"{ahead:.2f}x" if ahead >= 1 else f"**{ahead:.2f}x**"


def short(value: float) -> str:
    """Three significant digits, or every digit before the point.

    >>> short(1.23456), short(1234.5), short(0.00123456)
    ('1.23', '1,234', '0.00123')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
