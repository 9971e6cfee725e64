"""Log-probabilities of chosen and of likeliest tokens, under the model's own distribution."""

from collections.abc import Sequence

import torch

from slipstream.messages.sampling import Logprob
from slipstream.sampling.rows import take_rows


def gather_logprobs(logits: torch.Tensor, token_ids: torch.Tensor, top: Sequence[int | None]) -> list[Logprob | None]:
    """One entry for each row: None where top is None, else the chosen token's logprob and those of the `top` likeliest.

    logits: [rows, vocab] fp32 as the model gave them, before temperature and penalties; not modified.
    token_ids: [rows] int64. Logprobs are nats, log_softmax in fp32. Of equally likely tokens the lower id comes first.
    """
    rows = [row for row, num_top in enumerate(top) if num_top is not None]
    found: list[Logprob | None] = [None] * len(top)
    if not rows:
        return found
    logits = take_rows(logits, rows)
    counts = [min(top[row] or 0, logits.shape[-1]) for row in rows]
    logprobs = logits.log_softmax(dim=-1)
    chosen_ids = token_ids[rows]
    likeliest_ids = _likeliest(logits, max(counts))
    chosen = logprobs.gather(-1, chosen_ids[:, None])[:, 0].tolist()
    likeliest = logprobs.gather(-1, likeliest_ids).tolist()
    ids, top_ids = chosen_ids.tolist(), likeliest_ids.tolist()
    for at, (row, count) in enumerate(zip(rows, counts, strict=True)):
        pairs = list(zip(top_ids[at][:count], likeliest[at][:count], strict=True))
        found[row] = Logprob(token_id=ids[at], logprob=chosen[at], top=pairs)
    return found


def _likeliest(logits: torch.Tensor, count: int) -> torch.Tensor:
    """[rows, count] int64: ids of the largest logits in descending order, ties by ascending id.

    torch.topk leaves the order of ties open, and which of them it returns may then depend on `count`, that is on other
    rows. So it ranks integers without ties: the float's bits, made monotone, above the complement of the id.
    """
    if count == 0:
        return torch.empty(len(logits), 0, dtype=torch.int64, device=logits.device)
    vocab_size = logits.shape[-1]
    bits = (logits + 0.0).view(torch.int32)  # + 0.0 makes -0 and 0 equal
    monotone = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    rank = (monotone << 32) + torch.arange(vocab_size - 1, -1, -1, device=logits.device)
    return rank.topk(count, dim=-1).indices
