"""bench/RESULTS.md from the results: the latest figure of each case first, then what was measured before."""

from collections.abc import Mapping, Sequence

from slipstream.bench.floor_table import MARKS, floor_table, has_floors, short
from slipstream.bench.notes import Note, notes_section
from slipstream.bench.results import Result, meets

HEADER = """# Results

Written by `make results` from the JSON lines in `bench/results/`; edit those. A commit with "+" had changes on top.
"""
COLUMNS = "| case | value | target | | compared with | machine | date | commit |\n|---|---|---|---|---|---|---|---|"


def render(results: Mapping[str, Sequence[Result]], notes: Sequence[Note] = ()) -> str:
    """The page. `results` maps the name of a group to its results, oldest first."""
    groups = (_group(name, results[name], notes) for name in sorted(results) if results[name])
    return "\n".join([HEADER, *groups])


def split_latest(results: Sequence[Result]) -> tuple[list[Result], list[Result]]:
    """The last result of each case on each machine, in the order in which cases came up; the others, newest first."""
    latest = {(result.case, result.machine): index for index, result in enumerate(results)}
    kept = set(latest.values())
    older = [result for index, result in enumerate(results) if index not in kept]
    return [results[index] for index in latest.values()], older[::-1]


def _group(name: str, results: Sequence[Result], notes: Sequence[Note]) -> str:
    latest, older = split_latest(results)
    commands = dict.fromkeys(result.command for result in latest)
    floors = has_floors(results)
    table = floor_table if floors else _table
    parts = [f"## {name}\n", *(f"    {command}" for command in commands), "", table(latest), ""]
    if floors:
        machines = dict.fromkeys(result.machine for result in latest)
        parts[1:1] = [f'{", ".join(machines)}; "ahead" is by what factor ours is faster than the faster peer.\n']
        parts += notes_section(latest, notes)
    if older:
        parts += ["Earlier:\n", table(older), ""]
    return "\n".join(parts)


def _table(results: Sequence[Result]) -> str:
    return "\n".join([COLUMNS, *map(_line, results)])


def _line(result: Result) -> str:
    value, mark = f"{short(result.value)} {result.unit}", MARKS[meets(result.value, result.target)]
    measured = (result.machine, result.date, result.commit)
    cells = (result.case, value, result.target or "", mark, result.compared_with or "", *measured)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
