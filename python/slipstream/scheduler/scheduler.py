"""The scheduler: request lifecycle, pages and the plan of every step. A state machine without sockets or clocks.

    handle(message)    a request, an abort, a stop string, a flush
    plan(now)          the next step, or None when nothing can run or enough steps are in flight
    collect(result)    what a step committed
    take_outputs()     what the tokenizer has to hear

Up to `max_steps_in_flight` plans are out at once, so a plan never depends on what the step before will sample: the
scheduler knows how many tokens may come at least and at most, has pages for the most, and leaves tokens to the worker.
A sequence that stopped may therefore have one step too many in flight; its result is dropped, and its pages may be
given out at once because plans execute in order.
"""

from collections import deque
from collections.abc import Iterator

from slipstream.cache.page_cache import PageCache, PageLease
from slipstream.config.processes import SchedulerConfig
from slipstream.log import get_logger
from slipstream.messages.images import MAX_PLAN_PIXEL_BYTES
from slipstream.messages.sampling import FinishReason, Logprob
from slipstream.messages.to_scheduler import AddRequest, FinishChoice, FromTokenizer, SlotResult, StepResult
from slipstream.messages.to_tokenizer import (
    AbortRequest,
    FlushCache,
    FlushDone,
    FromScheduler,
    RequestFailed,
    SchedulerStatus,
    TokenOutput,
    TokenOutputs,
)
from slipstream.messages.to_worker import Plan
from slipstream.scheduler.draft_controller import DraftController
from slipstream.scheduler.draft_counts import copy_counters, count_verify, zero_counters
from slipstream.scheduler.drafting import Drafting, verify_outcome
from slipstream.scheduler.plan_builder import PlanBuilder, Row, StepInFlight
from slipstream.scheduler.reservation import rows_needed, useful_depth
from slipstream.scheduler.sequence import Sequence

logger = get_logger(__name__)


class Scheduler:
    """Owns all sequences and all pages. `num_pages` counts the sink page; `controller` replaces the usual one."""

    def __init__(self, config: SchedulerConfig, num_pages: int, controller: DraftController | None = None) -> None:
        self._config = config
        self._drafting = Drafting(config.drafts, controller)
        self._pages = PageCache(num_pages, config.page_size, config.prefix_cache, self._drafting.successor_depth)
        self.max_sequence_len = min(config.context_length, self._pages.capacity * config.page_size)  # prompt and answer
        self._free_slots = list(range(config.max_running_requests - 1, -1, -1))
        self._released_slots: list[int] = []  # since the last plan
        self._cold_slots: list[int] = []  # likewise
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # in order of admission
        self._in_flight: deque[StepInFlight] = deque()
        self._requests: dict[str, list[Sequence]] = {}  # unfinished choices
        self._step = 0
        self._token_outputs: list[TokenOutput] = []
        self._other_outputs: list[FromScheduler] = []
        self.counters = zero_counters(self._drafting.shape.depth)

    # ---- what the process loop asks

    @property
    def is_idle(self) -> bool:
        return not self._requests and not self._in_flight

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    def oldest_step_age(self, now: float) -> float:
        """Seconds since the oldest plan in flight was sent; 0 when none is."""
        return now - self._in_flight[0].sent_at if self._in_flight else 0.0

    def status(self, now: float) -> SchedulerStatus:
        return SchedulerStatus(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_pages=self._pages.capacity,
            num_pages_free=self._pages.num_free,
            num_pages_cached=self._pages.num_evictable,
            step_in_flight_s=self.oldest_step_age(now),
            counters=copy_counters(self.counters),
            draft_depth=self._drafting.depth,
        )

    def take_outputs(self) -> list[FromScheduler]:
        """Everything for the tokenizer since the last call; tokens of one turn travel in one message."""
        outputs: list[FromScheduler] = []
        if self._token_outputs:
            outputs.append(TokenOutputs(self._token_outputs))
            self._token_outputs = []
        outputs.extend(self._other_outputs)
        self._other_outputs = []
        return outputs

    def check_integrity(self) -> str | None:
        """None when free + cached + held pages and all slots add up, else what is wrong. Cheap."""
        leases = [sequence.lease for sequence in self._sequences()]
        if problem := self._pages.imbalance(leases):
            return problem
        num_slots = len(self._free_slots) + len(self._running)
        if num_slots != self._config.max_running_requests:
            return f"{num_slots} slots of {self._config.max_running_requests} are accounted for"
        return None

    def heal(self) -> None:
        """Forget all pages and slots; only when idle."""
        assert self.is_idle
        self._pages.heal()
        self._free_slots = list(range(self._config.max_running_requests - 1, -1, -1))
        self.counters.num_integrity_errors += 1

    # ---- messages

    def handle(self, message: FromTokenizer) -> None:
        """Take one message from the tokenizer. What it changes shows in the next plan."""
        match message:
            case AddRequest():
                self._add(message)
            case FinishChoice():
                self._finish_by_string(message)
            case AbortRequest():
                for sequence in list(self._requests.get(message.rid, ())):
                    self._finish(sequence, FinishReason("abort"))  # whoever aborted expects no answer
            case FlushCache():
                self._flush(message)

    def _add(self, message: AddRequest) -> None:
        assert message.rid not in self._requests, "the server makes ids unique"
        choices: list[Sequence] = []
        for sampling in message.choices:
            # Siblings share the first choice's prompt pages, and must not answer before its prompt logprobs are out.
            waits = self._config.prefix_cache or message.choices[0].prompt_logprobs_from is not None
            leader = choices[0] if choices and waits else None
            choices.append(
                Sequence(
                    rid=message.rid,
                    choice=sampling.choice,
                    token_ids=list(message.token_ids),
                    prompt_len=len(message.token_ids),
                    sampling=sampling,
                    leader=leader,
                    stop_ids=frozenset(sampling.stop_token_ids),
                    images=message.images,
                )
            )
        self._requests[message.rid] = choices
        self._waiting.extend(choices)
        self.counters.num_prompt_tokens += len(message.token_ids) * len(choices)

    def _finish_by_string(self, message: FinishChoice) -> None:
        for sequence in self._requests.get(message.rid, ()):
            if sequence.choice == message.choice:
                sequence.num_written = min(sequence.num_written, sequence.prompt_len + message.num_tokens)
                self._finish(sequence, FinishReason("stop"))
                return

    def _flush(self, message: FlushCache) -> None:
        busy = len(self._running) + len(self._waiting)
        if busy:
            error = f"{busy} requests are running or waiting; flush when the server is idle"
            self._other_outputs.append(FlushDone(message.rid, error))
            return
        self._pages.flush()
        if message.counters:
            self.counters = zero_counters(self._drafting.shape.depth)
        self._other_outputs.append(FlushDone(message.rid))

    # ---- planning

    def plan(self, now: float) -> Plan | None:
        """Decide the next step: every decoding sequence, then prompt chunks, then new sequences."""
        if len(self._in_flight) >= self._config.max_steps_in_flight:
            return None
        self._cool()
        builder = PlanBuilder(self._step, release=self._released_slots, cold=self._cold_slots)
        self._plan_decodes(builder)
        budget = self._plan_chunks(builder, self._config.chunked_prefill_size)
        self._plan_admissions(builder, budget)
        if not builder.rows:
            return None
        self._released_slots, self._cold_slots = [], []
        self._in_flight.append(builder.in_flight(now))
        self._step += 1
        self.counters.num_steps += 1
        return builder.build()

    def _cool(self) -> None:
        """From this plan on the draft follows no running sequence, if that is decided; what is in flight it keeps."""
        if not self._drafting.goes_cold():
            return
        for sequence in self._running:
            if not sequence.warm:
                continue
            assert sequence.slot is not None
            sequence.warm = False
            self._cold_slots.append(sequence.slot)

    def _plan_decodes(self, builder: PlanBuilder) -> None:
        """First a page for everybody's next token, then drafts from what is left."""
        decoding = [
            sequence
            for sequence in list(self._running)
            if sequence.slot is not None and sequence.wants_decode and self._make_room(sequence, builder)
        ]
        may_draft = [self._drafting.may_draft(sequence) for sequence in decoding]
        builder.num_decode, builder.num_warm = len(decoding), sum(may_draft)
        builder.depth = self._drafting.choose(builder.num_decode, builder.num_warm)
        for sequence, drafts in zip(decoding, may_draft, strict=True):
            depth = self._make_room_for_drafts(sequence, builder) if drafts and builder.depth else 0
            builder.add_decode(sequence, depth)

    def _make_room(self, sequence: Sequence, builder: PlanBuilder) -> bool:
        """See that a step without drafts has its page, preempting the youngest if need be; False if it was itself."""
        missing = self._num_pages_missing(sequence, self._num_rows(sequence, depth=0))
        if missing <= 0:
            return True
        while missing > self._pages.num_available:
            victim = self._running[-1]  # the builder has nothing of it yet: it comes after `sequence`, or is it
            self._preempt(victim)
            if victim is sequence:
                return False
        builder.append_pages(sequence, self._pages.extend(sequence.lease, missing))
        return True

    def _make_room_for_drafts(self, sequence: Sequence, builder: PlanBuilder) -> int:
        """Pages for the longest path of drafts that is of use and fits without anybody's preemption; its length."""
        depth = useful_depth(builder.depth, sequence.length_lb, sequence.limit, sequence.sampling.max_draft_tokens)
        while depth > 0 and not self._try_extend(sequence, depth, builder):
            depth -= 1
        return depth

    def _try_extend(self, sequence: Sequence, depth: int, builder: PlanBuilder) -> bool:
        num_rows = self._num_rows(sequence, depth)
        if num_rows > self.max_sequence_len:
            return False  # a tree's rows may reach past the request's limit, but not past what a page table holds
        missing = self._num_pages_missing(sequence, num_rows)
        if missing > 0:
            if missing > self._pages.num_available:
                return False
            builder.append_pages(sequence, self._pages.extend(sequence.lease, missing))
        return True

    def _num_rows(self, sequence: Sequence, depth: int) -> int:
        drafting = self._drafting
        return rows_needed(drafting.rows[depth], sequence.length_ub, sequence.limit, is_chain=drafting.is_chain)

    def _num_pages_missing(self, sequence: Sequence, num_rows: int) -> int:
        """Not above 0 if it has enough."""
        return -(-num_rows // self._config.page_size) - len(sequence.lease.pages)

    def _plan_chunks(self, builder: PlanBuilder, budget: int) -> int:
        for sequence in self._running:
            if budget <= 0:
                break
            if sequence.in_prefill:
                length = min(budget, sequence.prefill_end - sequence.num_planned)
                builder.add_chunk(sequence, length)
                budget -= length
        return budget

    def _plan_admissions(self, builder: PlanBuilder, budget: int) -> None:
        """Admit waiting sequences in order while slots, pages and the token budget last.

        One that does not fit keeps those behind it waiting too, so a long prompt is never starved by short ones. Only
        a sibling that waits for its leader's prompt, or a preempted sequence that has results to come, lets others by.
        """
        for sequence in list(self._waiting):
            if budget <= 0 or not self._free_slots or builder.num_pixel_bytes > MAX_PLAN_PIXEL_BYTES:
                return
            if sequence.waits_for_leader or sequence.num_in_flight:
                continue
            if not self._admit(sequence, builder):
                return
            length = min(budget, sequence.prefill_end - sequence.num_planned)
            builder.add_chunk(sequence, length)
            budget -= length

    def _admit(self, sequence: Sequence, builder: PlanBuilder) -> bool:
        """Give the sequence a slot and pages for all its tokens and the next one; False if they are not to be had."""
        if sequence.refused_at == self._pages.num_releases:
            return False
        may_be_warm = self._drafting.may_be_warm(sequence)
        lease = self._lease(sequence, valid_only=may_be_warm)
        missing = self._num_pages_for(sequence.num_known + 1) - len(lease.pages)
        # Each running sequence may soon want pages; without that reserve the newcomer would be preempted right away.
        reserve = len(self._running) * self._num_pages_for(self._drafting.shape.rows(self._drafting.depth or 0))
        if missing + reserve > self._pages.num_available and (self._running or missing > self._pages.num_available):
            self._pages.release(lease)
            sequence.refused_at = self._pages.num_releases
            return False
        sequence.warm = may_be_warm and self._drafting.admits_warm()  # asked only when it is sure to be admitted
        if may_be_warm and not sequence.warm:
            lease = self._longer_lease(sequence, lease)
            missing = self._num_pages_for(sequence.num_known + 1) - len(lease.pages)
        self._waiting.remove(sequence)
        self._running.append(sequence)
        sequence.slot = self._free_slots.pop()
        sequence.lease = lease
        sequence.prefill_end = sequence.num_known
        sequence.num_planned = len(lease.nodes) * self._config.page_size
        self._confirm(sequence, sequence.num_planned)
        sequence.prompt_logprobs = []
        if not sequence.was_admitted:
            sequence.was_admitted = True
            sequence.num_cached = sequence.num_planned
            self.counters.num_cached_tokens += sequence.num_cached
        self._pages.extend(lease, missing)
        builder.admit(sequence)
        return True

    def _lease(self, sequence: Sequence, valid_only: bool) -> PageLease:
        return self._pages.lease(sequence.key, match=not sequence.wants_prompt_logprobs, valid_only=valid_only)

    def _longer_lease(self, sequence: Sequence, lease: PageLease) -> PageLease:
        """In place of `lease`, of valid pages, one that takes others too, if it is longer and the rest still fits."""
        other = self._lease(sequence, valid_only=False)
        missing = self._num_pages_for(sequence.num_known + 1) - len(other.pages)
        is_better = len(other.pages) > len(lease.pages) and missing <= self._pages.num_available
        self._pages.release(lease if is_better else other)
        return other if is_better else lease

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue; what is computed stays in the tree as long as nobody needs its pages."""
        self._leave_slot(sequence)
        self._waiting.appendleft(sequence)
        self.counters.num_preemptions += 1

    def _leave_slot(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self._publish(sequence)
        self._pages.release(sequence.lease)
        sequence.lease = PageLease()
        self._running.remove(sequence)
        self._free_slots.append(sequence.slot)
        self._released_slots.append(sequence.slot)
        if sequence.slot in self._cold_slots:
            self._cold_slots.remove(sequence.slot)
        sequence.slot = None
        sequence.warm = False
        sequence.num_planned = sequence.num_written = sequence.num_valid = sequence.prefill_end = 0

    def _publish(self, sequence: Sequence) -> None:
        self._pages.publish(sequence.lease, sequence.key, sequence.num_written, sequence.num_valid)

    def _num_pages_for(self, num_rows: int) -> int:
        return -(-num_rows // self._config.page_size)

    # ---- results

    def collect(self, result: StepResult) -> None:
        """Take the result of the oldest step in flight."""
        step = self._in_flight.popleft()
        assert step.step == result.step, f"step {result.step} returned, {step.step} was expected"
        outcomes: list[tuple[int, int]] = []
        for slot_result in result.results:
            row = step.rows[slot_result.slot]
            row.sequence.take_back(row.samples, row.depth)
            if row.sequence.finish is None:
                if (outcome := verify_outcome(row, slot_result)) is not None:
                    outcomes.append(outcome)
                self._collect_row(row, slot_result)
        self._drafting.observe(step, result.step_s, outcomes)

    def _collect_row(self, row: Row, result: SlotResult) -> None:
        sequence = row.sequence
        if result.error is not None:
            self._fail(sequence.rid, result.error)
            return
        if row.chunk_length and sequence.slot is not None:
            self._confirm(sequence, sequence.num_written + row.chunk_length)
        if result.prompt_logprobs is not None and sequence.wants_prompt_logprobs:
            sequence.prompt_logprobs.extend(result.prompt_logprobs)
        if result.token_ids:
            self._collect_tokens(row, result)

    def _collect_tokens(self, row: Row, result: SlotResult) -> None:
        sequence = row.sequence
        is_first = sequence.num_generated == 0
        token_ids = self._append(sequence, result.token_ids)
        self.counters.num_generated_tokens += len(token_ids)
        if result.num_drafts:
            count_verify(self.counters, sequence, result.num_drafts, min(len(result.token_ids) - 1, len(token_ids)))
        if sequence.slot is not None:
            if row.is_decode:
                self._confirm(sequence, sequence.num_known - 1)  # the token kept last has no KV yet, or is the end
            if is_first:
                self._publish(sequence)
        logprobs = result.logprobs[: len(token_ids)] if result.logprobs is not None else None
        self._emit(sequence, token_ids, logprobs)
        if sequence.finish is not None:
            self._retire(sequence)

    def _confirm(self, sequence: Sequence, num_written: int) -> None:
        """KV of so many rows is final."""
        sequence.num_written = num_written
        if sequence.warm or not self._drafting.has_kv:
            sequence.num_valid = num_written

    def _append(self, sequence: Sequence, token_ids: list[int]) -> list[int]:
        """Append committed tokens up to the first stop or the length limit; returns those that were kept.

        With max_new_tokens 0, which scores a prompt, not even the first is kept.
        """
        room = sequence.limit - sequence.num_known
        kept = token_ids[:room]
        if not sequence.stop_ids.isdisjoint(kept):
            end, stop_id = next((i, token_id) for i, token_id in enumerate(kept, 1) if token_id in sequence.stop_ids)
            kept = kept[:end]
            sequence.finish = FinishReason("stop", stop_id)
        elif len(token_ids) >= room:
            sequence.finish = FinishReason("length")
        sequence.token_ids += kept
        return kept

    def _emit(self, sequence: Sequence, token_ids: list[int], logprobs: list[Logprob] | None = None) -> None:
        prompt_logprobs = None
        if sequence.wants_prompt_logprobs:
            prompt_logprobs = sequence.prompt_logprobs
            sequence.prompt_logprobs_sent = True
        self._token_outputs.append(
            TokenOutput(
                rid=sequence.rid,
                choice=sequence.choice,
                token_ids=token_ids,
                prompt_len=sequence.prompt_len,
                num_cached=sequence.num_cached,
                finish=sequence.finish,
                logprobs=logprobs,
                prompt_logprobs=prompt_logprobs,
                drafts=sequence.drafts,
            )
        )

    # ---- endings

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        sequence.finish = reason
        self._retire(sequence)

    def _retire(self, sequence: Sequence) -> None:
        """A finished sequence gives back all it has."""
        if sequence.slot is not None:
            self._leave_slot(sequence)
        else:
            self._waiting.remove(sequence)
        choices = self._requests[sequence.rid]
        choices.remove(sequence)
        if not choices:
            del self._requests[sequence.rid]

    def _fail(self, rid: str, message: str) -> None:
        """End every choice of one request with an error; all others go on."""
        logger.error("request %s failed: %s", rid, message)
        for sequence in list(self._requests.get(rid, ())):
            sequence.num_written = 0  # nothing of a failed computation may be reused
            self._finish(sequence, FinishReason("abort"))
        self._other_outputs.append(RequestFailed(rid, 500, message))

    def _sequences(self) -> Iterator[Sequence]:
        for choices in self._requests.values():
            yield from choices
