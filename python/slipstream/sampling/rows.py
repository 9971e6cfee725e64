"""Working on some rows of a batch: a feature touches the rows whose slots use it and costs nothing for the others."""

from collections.abc import Collection, Sequence

import torch


def rows_using(slots: Sequence[int], users: Collection[int]) -> list[int]:
    """The rows whose slot is in `users`. Worked example: slots (7, 3, 7), users {7} -> [0, 2]."""
    return [row for row, slot in enumerate(slots) if slot in users] if users else []


def take_rows(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """`logits` [n, *] itself when `rows` (ascending) are all of them, else a copy [len(rows), *]."""
    return logits if len(rows) == len(logits) else logits[list(rows)]


def put_rows(logits: torch.Tensor, rows: Sequence[int], part: torch.Tensor) -> None:
    """Write back what take_rows gave, after it was changed in place or replaced."""
    if part is not logits:
        logits[list(rows)] = part


def index_entries(rows: Sequence[int], columns: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Index the columns columns[i] [m] int64 of row rows[i], for all i at once: two int64 [sum of m].

    Worked example: rows (4, 6), columns ([1, 2], [0]) -> [4, 4, 6], [1, 2, 0].
    """
    at = [row for row, of_row in zip(rows, columns, strict=True) for _ in range(len(of_row))]
    ids = torch.cat(list(columns))
    return torch.tensor(at, device=ids.device), ids
