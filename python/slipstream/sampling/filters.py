"""top-k, top-p and min-p, in this order, each on the distribution that the one before it left.

They come after the temperature, as in transformers' generate(). Others differ in details: vLLM puts min-p before top-k,
SGLang without min-p measures top-p on the distribution before top-k.
Each rule keeps or removes all tokens of equal value, so the outcome depends on values alone, never on ids or on the
order in which a sort meets ties:

- top-k keeps what is at least as likely as the k-th likeliest token. Ties with it stay, so more than k may remain.
- top-p (nucleus: Holtzman et al., arXiv 1904.09751) keeps a token if the tokens sorted before it hold less than
  top_p: the smallest likeliest set that holds top_p or more, and what ties with its last token. The likeliest always
  stays.
- min-p (Nguyen et al., arXiv 2407.01082) keeps what is at least min_p times as likely as the likeliest token. The ratio
  does not depend on the normalisation.

Masked logits become -inf.
"""

from collections.abc import Sequence

import torch

from slipstream.messages.sampling import SamplingParams
from slipstream.sampling.rows import put_rows, rows_using, take_rows

NUCLEUS_HEAD = 1024  # nuclei rarely hold more tokens, and finding so many is ten times faster than sorting 131072


def keep_top_k_(logits: torch.Tensor, top_k: torch.Tensor, largest_k: int) -> None:
    """Mask what is below the k-th largest logit of its row. In place.

    logits: [rows, vocab] fp32. top_k: [rows] int64 in [1, largest_k], with largest_k <= vocab.
    """
    kth = logits.topk(largest_k, dim=-1).values.gather(-1, (top_k - 1)[:, None])
    logits.masked_fill_(logits < kth, -torch.inf)


def keep_top_p_(logits: torch.Tensor, top_p: torch.Tensor) -> None:
    """Mask what lies outside the nucleus of its row. In place. logits: [rows, vocab] fp32; top_p: [rows] fp32."""
    probs = logits.softmax(dim=-1)
    least = nucleus_threshold(probs, top_p)
    logits.masked_fill_(probs < least[:, None], -torch.inf)


def keep_min_p_(logits: torch.Tensor, min_p: torch.Tensor) -> None:
    """Mask what is less than min_p times as likely as the likeliest. In place.

    logits: [rows, vocab] fp32; min_p: [rows] fp32 in (0, 1].
    """
    least = logits.amax(dim=-1) + min_p.log()
    logits.masked_fill_(logits < least[:, None], -torch.inf)


def nucleus_threshold(probs: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The least probability inside the nucleus of each row, [rows] fp32.

    Worked example: probs (.5, .3, .2), top_p .7 -> .3: before the token of .2 lie .8 already.
    """
    head = probs.topk(min(NUCLEUS_HEAD, probs.shape[-1]), dim=-1).values
    inside = _inside_nucleus(head, top_p)
    least = _last_kept(head, inside)
    if head.shape[-1] < probs.shape[-1]:
        longer = inside[:, -1].nonzero().flatten()  # the nucleus may go on beyond the head
        if len(longer):
            whole = probs[longer].sort(dim=-1, descending=True).values
            least[longer] = _last_kept(whole, _inside_nucleus(whole, top_p[longer]))
    return least


def _inside_nucleus(descending: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Which of the sorted probabilities [rows, n] have less than top_p before them; the first always counts."""
    mass = descending.cumsum(dim=-1)
    inside = torch.ones_like(descending, dtype=torch.bool)
    inside[:, 1:] = mass[:, :-1] < top_p[:, None]
    return inside


def _last_kept(descending: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    return descending.gather(-1, inside.sum(dim=-1, keepdim=True) - 1)[:, 0]


class Filters:
    """top_k, top_p and min_p of each slot, and which slots use which."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self.top_k = torch.zeros(num_slots, dtype=torch.int64, device=device)  # of slots that do not use it: 0
        self.top_p = torch.ones(num_slots, dtype=torch.float32, device=device)  # 1
        self.min_p = torch.zeros(num_slots, dtype=torch.float32, device=device)  # 0
        self._top_k_cpu: dict[int, int] = {}
        self._uses_top_p: set[int] = set()
        self._uses_min_p: set[int] = set()

    def add(self, slot: int, params: SamplingParams) -> None:
        """Take the slot's filters. top_k 0 or from the vocabulary's size on, top_p 1 and min_p 0 are off."""
        self.release(slot)
        if 0 < params.top_k < self._vocab_size:
            self._top_k_cpu[slot] = params.top_k
            self.top_k[slot].fill_(params.top_k)
        if params.top_p < 1.0:
            self.top_p[slot].fill_(params.top_p)
            self._uses_top_p.add(slot)
        if params.min_p > 0.0:
            self.min_p[slot].fill_(params.min_p)
            self._uses_min_p.add(slot)

    def release(self, slot: int) -> None:
        if self._top_k_cpu.pop(slot, None) is not None:
            self.top_k[slot].fill_(0)
        if slot in self._uses_top_p:
            self._uses_top_p.remove(slot)
            self.top_p[slot].fill_(1.0)
        if slot in self._uses_min_p:
            self._uses_min_p.remove(slot)
            self.min_p[slot].fill_(0.0)

    def apply(self, logits: torch.Tensor, slots: Sequence[int]) -> None:
        """Mask what the rows' filters remove. In place. logits: [rows, vocab] fp32, temperature already applied."""
        if rows := rows_using(slots, self._top_k_cpu):
            users = [slots[row] for row in rows]
            part = take_rows(logits, rows)
            keep_top_k_(part, self.top_k[users], max(self._top_k_cpu[slot] for slot in users))
            put_rows(logits, rows, part)
        if rows := rows_using(slots, self._uses_top_p):
            part = take_rows(logits, rows)
            keep_top_p_(part, self.top_p[[slots[row] for row in rows]])
            put_rows(logits, rows, part)
        if rows := rows_using(slots, self._uses_min_p):
            part = take_rows(logits, rows)
            keep_min_p_(part, self.min_p[[slots[row] for row in rows]])
            put_rows(logits, rows, part)
