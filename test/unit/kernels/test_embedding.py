"""Rows of the table, bit for bit."""

import pytest
import torch
from torch import Tensor

from slipstream.kernels.embedding import (
    embed_and_concat,
    embed_and_concat_reference,
    embed_rows,
    embed_rows_reference,
)
from slipstream.kernels.launch import IS_INTERPRETED
from support.one_thread import for_tiny_models  # noqa: F401

DEVICE = "cpu" if IS_INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def make(rows: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(table, token ids, hidden states); the first and the last token are among them."""
    generator = torch.Generator().manual_seed(size)
    table, hidden = (torch.randn(n, size, generator=generator).to(DEVICE, dtype) for n in (7, rows))
    token_ids = torch.randint(0, 7, (rows,), generator=generator)
    token_ids[:1], token_ids[-1:] = 0, 6
    return table, token_ids.to(DEVICE), hidden


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "size"), [(1, 1), (5, 6), (3, 2048), (2, 2500)])
def test_rows_and_what_is_beside_them(rows: int, size: int, dtype: torch.dtype) -> None:
    table, token_ids, hidden = make(rows, size, dtype)
    alone, both = embed_rows(table, token_ids), embed_and_concat(table, token_ids, hidden)
    for row, token_id in enumerate(token_ids.tolist()):
        assert torch.equal(alone[row], table[token_id])
        assert torch.equal(both[row, :size], table[token_id])
        assert torch.equal(both[row, size:], hidden[row])
    assert torch.equal(alone, embed_rows_reference(table, token_ids))
    assert torch.equal(both, embed_and_concat_reference(table, token_ids, hidden))


def test_no_rows() -> None:
    table, token_ids, hidden = make(0, 8, torch.float32)
    assert embed_rows(table, token_ids).shape == (0, 8)
    assert embed_and_concat(table, token_ids, hidden).shape == (0, 16)


def test_hidden_states_of_another_dtype() -> None:
    table, token_ids, hidden = make(2, 8, torch.float32)
    with pytest.raises(AssertionError):
        embed_and_concat(table, token_ids, hidden.half())
