"""bench/RESULTS.md from the results: the latest figure of each case first, then what was measured before."""

from collections.abc import Mapping, Sequence

from slipstream.bench.results import Result, meets

HEADER = """# Results

Written by `make results` from the JSON lines in `bench/results/`; edit those. A commit with "+" had changes on top.
"""
COLUMNS = "| case | value | target | | compared with | machine | date | commit |\n|---|---|---|---|---|---|---|---|"
MARKS = {True: "met", False: "**missed**", None: ""}


def render(results: Mapping[str, Sequence[Result]]) -> str:
    """The page. `results` maps the name of a group to its results, oldest first."""
    return "\n".join([HEADER, *(_group(name, results[name]) for name in sorted(results) if results[name])])


def split_latest(results: Sequence[Result]) -> tuple[list[Result], list[Result]]:
    """The last result of each case on each machine, in the order in which cases came up; the others, newest first."""
    latest = {(result.case, result.machine): index for index, result in enumerate(results)}
    kept = set(latest.values())
    older = [result for index, result in enumerate(results) if index not in kept]
    return [results[index] for index in latest.values()], older[::-1]


def _group(name: str, results: Sequence[Result]) -> str:
    latest, older = split_latest(results)
    commands = dict.fromkeys(result.command for result in latest)
    parts = [f"## {name}\n", *(f"    {command}" for command in commands), "", COLUMNS, *map(_line, latest), ""]
    if older:
        parts += ["Earlier:\n", COLUMNS, *map(_line, older), ""]
    return "\n".join(parts)


def _line(result: Result) -> str:
    value, mark = f"{_short(result.value)} {result.unit}", MARKS[meets(result.value, result.target)]
    measured = (result.machine, result.date, result.commit)
    cells = (result.case, value, result.target or "", mark, result.compared_with or "", *measured)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _short(value: float) -> str:
    """Three significant digits, or every digit before the point.

    >>> _short(1.23456), _short(1234.5), _short(0.00123456)
    ('1.23', '1,234', '0.00123')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
