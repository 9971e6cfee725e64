"""A worker without a model that checks every read: an oracle for the scheduler.

Its KV cache stores token ids. A row at position p must find the sequence's own tokens at every position before p;
the next token is a hash of all tokens up to p, so a stream does not depend on batches, chunks or cache hits. It accepts
random numbers of drafts. The draft's KV stores each token with its successor, and a warm slot must find its own.
"""

import random
from collections import deque
from collections.abc import Callable, Set
from dataclasses import dataclass

from slipstream.config.processes import SchedulerDrafts
from slipstream.messages.sampling import Logprob, SamplingParams
from slipstream.messages.to_scheduler import SlotResult, StepResult
from slipstream.messages.to_worker import NewRequest, Plan


def next_token(token_ids: list[int], sampling: SamplingParams, vocab_size: int) -> int:
    """The token after `token_ids`: any fixed function will do, as long as it sees the whole prefix."""
    state = 17 * sampling.seed + 1009 * sampling.choice + 5
    for token_id in token_ids:
        state = (state * 1_000_003 + token_id + 1) % 2_147_483_647
    return (state // 7) % vocab_size


def expected_answer(prompt: list[int], sampling: SamplingParams, vocab_size: int) -> list[int]:
    """What a request must get: the stream up to its first stop id or its length."""
    token_ids = list(prompt)
    while len(token_ids) - len(prompt) < sampling.max_new_tokens:
        token_ids.append(next_token(token_ids, sampling, vocab_size))
        if token_ids[-1] in sampling.stop_token_ids:
            break
    return token_ids[len(prompt) :]


GARBAGE = -1  # what a failing computation, or a rejected draft, leaves in the cache


@dataclass
class Slot:
    request: NewRequest
    token_ids: list[int]
    pages: list[int]
    num_rows: int  # positions whose KV is written and final
    warm: bool

    @property
    def limit(self) -> int:
        return self.request.prompt_len + self.request.sampling.max_new_tokens


class FakeWorker:
    """`published()` are the pages that may be shared now: nothing may write to them."""

    def __init__(
        self,
        page_size: int,
        vocab_size: int,
        drafts: SchedulerDrafts | None = None,
        seed: int = 0,
        published: Callable[[], Set[int]] = frozenset,
    ) -> None:
        self.page_size = page_size
        self.vocab_size = vocab_size
        self.drafts = drafts
        self.random = random.Random(seed)
        self.published = published
        self.kv: dict[tuple[int, int], int] = {}
        self.draft_kv: dict[tuple[int, int], tuple[int, int]] = {}  # (token, the token after it)
        self.slots: dict[int, Slot] = {}
        self.num_steps = 0
        self.accepts: deque[int] = deque()  # drafts to accept in the next verify steps; then random numbers
        self.poisoned_prompts: set[tuple[int, ...]] = set()  # each of their rows writes garbage, each result says so

    def step(self, plan: Plan) -> StepResult:
        assert plan.step == self.num_steps, "plans arrive in order"
        self.num_steps += 1
        for slot_index in plan.release:
            del self.slots[slot_index]
        for new in plan.new:
            self._admit(new)
        for slot_index, pages in plan.pages:
            self.slots[slot_index].pages.extend(pages)
        for slot in self.slots.values():
            assert len(set(slot.pages)) == len(slot.pages) and 0 not in slot.pages, "page 0 is the sink"
        for slot_index in plan.cold:
            assert self.slots[slot_index].warm, "only a warm slot goes cold"
            self.slots[slot_index].warm = False
        assert set(plan.draft_depths) <= set(plan.decode)
        results = [self._chunk(chunk.slot, chunk.start, chunk.length, chunk.last) for chunk in plan.chunks]
        results += [self._decode(index, plan.draft_depths.get(index)) for index in plan.decode]
        assert len({result.slot for result in results}) == len(results), "one entry for each slot"
        return StepResult(step=plan.step, results=results, step_s=0.0)

    def _admit(self, new: NewRequest) -> None:
        assert new.slot not in self.slots, f"slot {new.slot} is in use"
        if new.warm:
            assert self.drafts is not None and self.drafts.has_kv and new.sampling.max_draft_tokens != 0
        slot = Slot(new, list(new.token_ids), list(new.pages), new.num_cached, new.warm)
        self.slots[new.slot] = slot
        self._check_draft_kv(slot)

    def _chunk(self, index: int, start: int, length: int, last: bool) -> SlotResult:
        slot = self.slots[index]
        assert start == slot.num_rows, "chunks continue where the last one ended"
        for _ in range(length):
            self._row(slot)
        assert last == (slot.num_rows == len(slot.token_ids)), "the last chunk ends the prompt"
        prompt_logprobs = self._prompt_logprobs(slot, start, length)
        if last:
            slot.token_ids.append(next_token(slot.token_ids, slot.request.sampling, self.vocab_size))
        self._refeed(slot, start)
        return self._result(index, slot, slot.token_ids[-1:] if last else [], prompt_logprobs)

    def _decode(self, index: int, depth: int | None) -> SlotResult:
        slot = self.slots[index]
        begin = slot.num_rows
        assert begin == len(slot.token_ids) - 1, "only the last sampled token has no KV yet"
        self._check_draft_kv(slot)
        num_drafts = self._draft(slot, depth) if depth is not None else 0
        for row in range(begin, begin + num_drafts + 1):
            self._write(slot, row, GARBAGE, begin)
        for _ in range(1 + self._num_accepted(depth or 0, num_drafts)):
            self._row(slot, begin)
            slot.token_ids.append(next_token(slot.token_ids, slot.request.sampling, self.vocab_size))
        self._refeed(slot, begin)
        return self._result(index, slot, slot.token_ids[begin + 1 :], None, num_drafts)

    def _draft(self, slot: Slot, depth: int) -> int:
        """Check that the slot may have drafts, and scribble where drafting works; returns the number of drafts."""
        assert self.drafts is not None and 1 <= depth <= self.drafts.shape.depth
        most = slot.request.sampling.max_draft_tokens
        assert most is None or depth <= most
        num_nodes = self.drafts.shape.nodes(depth)
        if not self.drafts.has_kv:
            return self.random.randint(0, num_nodes)  # one that looks tokens up may find fewer, or none
        assert slot.warm, "a cold slot has no drafts"
        for row in range(slot.num_rows, slot.num_rows + self.drafts.shape.rows(depth)):
            if (place := self._place(slot, row, slot.num_rows)) is not None:
                self._check_may_write(slot, place[0])
                self.draft_kv[place] = (GARBAGE, GARBAGE)
        return num_nodes

    def _num_accepted(self, depth: int, num_drafts: int) -> int:
        most = min(depth, num_drafts)
        if num_drafts and self.accepts:
            return min(self.accepts.popleft(), most)
        return self.random.randint(0, most)

    def _row(self, slot: Slot, begin: int | None = None) -> None:
        """Compute the next row, which attends to all before it. `begin` is where its decode step began."""
        position = slot.num_rows
        is_poisoned = self._prompt(slot) in self.poisoned_prompts
        for earlier in range(position):
            place = self._place(slot, earlier, begin)
            found = self.kv.get(place) if place else slot.token_ids[earlier]
            assert is_poisoned or found == slot.token_ids[earlier], f"position {earlier} holds {found}"
        self._write(slot, position, GARBAGE if is_poisoned else slot.token_ids[position], begin)
        slot.num_rows += 1

    def _write(self, slot: Slot, position: int, content: int, begin: int | None) -> None:
        place = self._place(slot, position, begin)
        if place is None:
            return
        self._check_may_write(slot, place[0])
        self.kv[place] = content
        self.draft_kv.pop(place, None)  # until the re-feed: what another request left there is of no use

    def _check_may_write(self, slot: Slot, page: int) -> None:
        assert page not in self.published(), f"page {page} is shared"
        owners = [other for other in self.slots.values() if page in other.pages]
        assert owners == [slot], f"page {page} has {len(owners)} owners"

    def _refeed(self, slot: Slot, begin: int) -> None:
        """The draft follows a warm slot: its rows from `begin` on become complete, each with its true successor."""
        if not slot.warm or self._prompt(slot) in self.poisoned_prompts:
            return
        for position in range(begin, slot.num_rows):
            if (place := self._place(slot, position, begin)) is not None:
                self.draft_kv[place] = (slot.token_ids[position], slot.token_ids[position + 1])
        self._check_draft_kv(slot)

    def _check_draft_kv(self, slot: Slot) -> None:
        if not slot.warm or self._prompt(slot) in self.poisoned_prompts:
            return
        for position in range(slot.num_rows):
            if (place := self._place(slot, position, slot.num_rows)) is not None:
                found, wanted = self.draft_kv.get(place), tuple(slot.token_ids[position : position + 2])
                assert found == wanted, f"the draft's row {position} holds {found}, not {wanted}"

    def _place(self, slot: Slot, position: int, begin: int | None) -> tuple[int, int] | None:
        """(page, offset) of a row; None: the sink, which takes rows from which nothing that counts can come."""
        column, offset = divmod(position, self.page_size)
        if column < len(slot.pages):
            return slot.pages[column], offset
        is_chain = self.drafts is None or self.drafts.shape.is_chain
        is_over = begin is not None and begin >= slot.limit - 1
        assert is_over or (is_chain and position >= slot.limit), f"row {position} has no page, limit {slot.limit}"
        return None

    def _prompt_logprobs(self, slot: Slot, start: int, length: int) -> list[Logprob] | None:
        first = slot.request.sampling.prompt_logprobs_from
        if first is None:
            return None
        stop = min(start + length + 1, slot.request.prompt_len)
        return [Logprob(slot.token_ids[at], -float(at)) for at in range(max(start + 1, first), stop)]

    def _prompt(self, slot: Slot) -> tuple[int, ...]:
        return tuple(slot.request.token_ids[: slot.request.prompt_len])

    def _result(
        self, index: int, slot: Slot, token_ids: list[int], prompt_logprobs: list[Logprob] | None, num_drafts: int = 0
    ) -> SlotResult:
        if self._prompt(slot) in self.poisoned_prompts:
            return SlotResult(index, [], error="the logits are not finite")
        wants = slot.request.sampling.top_logprobs is not None and token_ids
        logprobs = [Logprob(token_id, -1.0) for token_id in token_ids] if wants else None
        return SlotResult(index, token_ids, logprobs, prompt_logprobs, num_drafts=num_drafts)
