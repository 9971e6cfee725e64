"""Executes plans: weights, KV pages and the state of every slot are here, decisions are not."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.attention.base import AttentionBackend
from slipstream.attention.move_rows import move_rows
from slipstream.attention.paging import locate
from slipstream.errors import RequestError
from slipstream.messages.sampling import Logprob, SamplingParams
from slipstream.messages.to_scheduler import SlotResult, StepResult, WorkerReady
from slipstream.messages.to_worker import NewRequest, Plan, PrefillChunk
from slipstream.models.base import CausalLM, ImageRows
from slipstream.sampling.candidates import Candidates
from slipstream.sampling.logprobs import gather_logprobs
from slipstream.sampling.sampler import Sampler
from slipstream.sampling.verifier import Verifier
from slipstream.worker.batch import Batch, build_batch, last_row_of_each, scored_rows
from slipstream.worker.device_state import DeviceState
from slipstream.worker.drafting import Drafting
from slipstream.worker.images import ImageStore
from slipstream.worker.outcome import Outcome, Run
from slipstream.worker.threads import threads_for_step

NOT_FINITE = (
    "the model computed numbers that are not finite for this request: its weights are damaged, or values grow beyond "
    "the dtype; try --dtype float32"
)
_MAX_LOGIT_ELEMENTS = 2**24  # of one block of prompt rows: 64 MiB in fp32


@dataclass
class _Request:
    """What the worker remembers of a slot beside the device's state."""

    sampling: SamplingParams
    prompt_len: int


class Worker:
    """One rank. step() is the whole of its work; `ready` says what it has."""

    def __init__(
        self,
        model: CausalLM,
        attention: AttentionBackend,
        caches: Sequence[Tensor],
        state: DeviceState,
        sampler: Sampler,
        verifier: Verifier,
        images: ImageStore | None,
        drafting: Drafting | None,
        vocab_size: int,
        ready: WorkerReady,
        parameters_per_layer: int,
    ) -> None:
        self.ready = ready
        self._parameters_per_layer = parameters_per_layer
        self._num_cores: int = ready.info["num_cores"]
        self._model = model
        self._attention = attention
        # by row: what moves when a path through a tree of drafts is accepted
        self._row_stores = [*caches, state.token_ids]
        self._state = state
        self._sampler = sampler
        self._verifier = verifier
        self._images = images  # None: the model takes text only
        self._drafting = drafting  # None: no speculation
        self._vocab_size = vocab_size
        self._requests: dict[int, _Request] = {}
        self._errors: dict[int, str] = {}  # slots whose request cannot go on, until they are released

    @torch.inference_mode()
    def step(self, plan: Plan) -> StepResult:
        """Execute one plan; plans come in stream order. A request that fails is a result with `error`."""
        started = time.perf_counter()
        self._admit(plan)
        decode = [slot for slot in plan.decode if slot not in self._errors]
        chunks = [chunk for chunk in plan.chunks if chunk.slot not in self._errors]
        outcomes = {slot: Outcome() for slot in (*decode, *(chunk.slot for chunk in chunks))}
        if outcomes:
            candidates = self._propose(decode, plan.draft_depths)
            self._compute(build_batch(self._state, decode, candidates, chunks), decode, chunks, outcomes)
        slots = [*plan.decode, *(chunk.slot for chunk in plan.chunks)]
        return StepResult(
            plan.step, [self._result(slot, outcomes.get(slot)) for slot in slots], time.perf_counter() - started
        )

    def _admit(self, plan: Plan) -> None:
        for slot in plan.release:
            self._state.release(slot)
            self._sampler.release(slot)
            self._verifier.release(slot)
            if self._images is not None:
                self._images.release(slot)
            if self._drafting is not None:
                self._drafting.release(slot)
            self._requests.pop(slot, None)
            self._errors.pop(slot, None)
        for new in plan.new:
            self._add(new)
        if self._drafting is not None:
            for slot in plan.cold:
                self._drafting.release(slot)
        for slot, pages in plan.pages:
            if slot not in self._errors:
                self._state.append_pages(slot, pages)

    def _add(self, new: NewRequest) -> None:
        self._requests[new.slot] = _Request(new.sampling, new.prompt_len)
        if not 0 <= min(new.token_ids) <= max(new.token_ids) < self._vocab_size:
            self._errors[new.slot] = f"a token id lies outside the vocabulary of {self._vocab_size}"
            return
        try:
            if new.images:
                self._add_images(new)
            self._state.add(new.slot, new.token_ids, new.pages, new.num_cached)
            self._sampler.add(new.slot, new.sampling, new.token_ids, new.prompt_len)
        except RequestError as error:
            self._errors[new.slot] = str(error)
            return
        self._verifier.add(new.slot, new.sampling)
        if self._drafting is not None:
            self._drafting.add(new)

    def _add_images(self, new: NewRequest) -> None:
        if self._images is None:
            raise RequestError("the request has images, but the model takes text only")
        self._images.add(new.slot, new.token_ids, new.images)

    def _propose(self, decode: Sequence[int], depths: dict[int, int]) -> Candidates:
        """The drafts that this step verifies."""
        if self._drafting is None or not depths:
            return Candidates.none(len(decode), self._state.bonus.device)
        self._set_threads(len(decode))
        return self._drafting.propose(decode, depths)

    def _compute(
        self, batch: Batch, decode: Sequence[int], chunks: Sequence[PrefillChunk], outcomes: dict[int, Outcome]
    ) -> None:
        """One forward pass over all rows, then everything that reads its result."""
        state = self._state
        for chunk in chunks:
            assert chunk.start == state.committed_len_cpu[chunk.slot], f"{chunk} does not continue its slot"
        images = self._image_rows(batch.num_decode_rows, chunks)
        self._set_threads(len(batch.token_ids))
        self._attention.plan(batch.layout)
        x = self._model.embed(batch.token_ids, images)
        hidden = self._model.forward(x, batch.positions, self._attention)
        state.token_ids.view(-1).index_copy_(0, batch.layout.kv_rows, batch.token_ids.int())
        for chunk, last_row in zip(chunks, last_row_of_each(batch.num_decode_rows, chunks), strict=True):
            state.set_committed_len(chunk.slot, chunk.start + chunk.length)
            self._score_prompt(chunk, hidden[last_row + 1 - chunk.length : last_row + 1], outcomes[chunk.slot])
        self._check_chunks(batch.num_decode_rows, chunks, hidden)
        runs = self._sample(batch, len(decode), hidden, outcomes)
        if self._drafting is not None:
            self._draft_follows(batch, chunks, runs, hidden, outcomes)
        if self._images is not None:
            for chunk in chunks:
                if chunk.last:
                    self._images.release(chunk.slot)

    def _draft_follows(
        self,
        batch: Batch,
        chunks: Sequence[PrefillChunk],
        runs: Sequence[Run],
        hidden: Tensor,
        outcomes: dict[int, Outcome],
    ) -> None:
        assert self._drafting is not None
        first_tokens = {chunk.slot: outcomes[chunk.slot].token_ids for chunk in chunks if chunk.last}
        self._drafting.take(
            runs,
            chunks,
            batch.num_decode_rows,
            self._state.prompts,
            {slot: token_ids[0] for slot, token_ids in first_tokens.items() if token_ids},
            hidden,
            lambda num_before, kept: self._image_rows(num_before, kept, ahead=1),
        )

    def _check_chunks(self, num_decode_rows: int, chunks: Sequence[PrefillChunk], hidden: Tensor) -> None:
        """End requests whose chunk was computed to nonsense, before its pages are shared.

        A last chunk's logits will be looked at; of the others the last row is, which has attended to all before it that
        its windows let it see.
        """
        last_rows = last_row_of_each(num_decode_rows, chunks)
        ends = [(chunk.slot, row) for chunk, row in zip(chunks, last_rows, strict=True) if not chunk.last]
        if not ends:
            return
        rows = hidden.index_select(0, torch.tensor([row for _, row in ends], device=hidden.device))
        for (slot, _), finite in zip(ends, rows.float().sum(-1).isfinite().tolist(), strict=True):
            if not finite:
                self._errors[slot] = NOT_FINITE

    def _image_rows(self, num_before: int, chunks: Sequence[PrefillChunk], *, ahead: int = 0) -> ImageRows | None:
        if self._images is None or not self._images.in_use:
            return None
        return self._images.rows(num_before, chunks, before_encoding=self._set_threads, ahead=ahead)

    def _set_threads(self, num_rows: int) -> None:
        """Before work on so many rows, or patches of images."""
        if self._num_cores:
            torch.set_num_threads(threads_for_step(num_rows, self._parameters_per_layer, self._num_cores))

    def _sample(self, batch: Batch, num_decode: int, hidden: Tensor, outcomes: dict[int, Outcome]) -> list[Run]:
        """Verify the drafts and draw the next token of each sampled slot; returns what the decode slots committed.

        A slot on whose path the logits are not finite ends its own request only.
        """
        slots = batch.sampled_slots
        if not slots:
            return []
        if len(batch.sampled_rows) != hidden.shape[0]:
            hidden = hidden.index_select(0, torch.tensor(batch.sampled_rows, device=hidden.device))
        logits = self._model.compute_logits(hidden)
        asked = [index for index, slot in enumerate(slots) if self._requests[slot].sampling.top_logprobs is not None]
        raw = logits.clone() if asked else logits  # sampling changes the logits
        accepted = self._verifier.verify(logits, slots, batch.first_positions, batch.candidates)
        counts, finite = accepted.num_tokens.tolist(), accepted.is_finite.tolist()
        runs = accepted.token_ids.tolist()
        for index, slot in enumerate(slots):
            if finite[index]:
                outcomes[slot].token_ids = runs[index][: counts[index]]
                outcomes[slot].num_drafts = batch.candidates.num_drafts[index]
            else:
                self._errors[slot] = NOT_FINITE
        slots_device = torch.tensor(slots, device=logits.device)
        bonus = accepted.token_ids.gather(1, accepted.num_tokens[:, None] - 1)[:, 0]
        self._state.bonus.index_copy_(0, slots_device, bonus)
        nodes = accepted.nodes.tolist()
        if num_decode:
            if not batch.candidates.is_chain:
                self._move_accepted(slots[:num_decode], nodes, counts)
            self._state.commit(
                slots[:num_decode], counts[:num_decode], slots_device[:num_decode], accepted.num_tokens[:num_decode]
            )
        committed = [(slot, token_id) for slot in slots for token_id in outcomes[slot].token_ids]
        if committed:
            of_slots, token_ids = zip(*committed, strict=True)
            self._sampler.record(of_slots, torch.tensor(token_ids, device=logits.device))
        rows = _rows_of_runs(batch.candidates, nodes, counts)
        self._take_logprobs(raw, slots, [index for index in asked if finite[index]], rows, outcomes)
        return [
            Run(slot, batch.first_positions[index] - 1, rows[index], outcomes[slot].token_ids)
            for index, slot in enumerate(slots[:num_decode])
            if finite[index]
        ]

    def _move_accepted(self, slots: Sequence[int], nodes: Sequence[Sequence[int]], counts: Sequence[int]) -> None:
        """KV of an accepted path lies where its nodes are in the tree; from now on one row after the other."""
        moves = [
            (slot, self._state.committed_len_cpu[slot] + node, self._state.committed_len_cpu[slot] + level)
            for slot, path, count in zip(slots, nodes, counts, strict=False)
            for level, node in enumerate(path[:count])
            if node != level
        ]
        if not moves:
            return
        of_slots, source, target = torch.tensor(moves, device=self._state.bonus.device).unbind(1)
        tables, page_size = self._state.page_tables, self._state.page_size
        move_rows(
            self._row_stores,
            locate(tables, of_slots, source, page_size),
            locate(tables, of_slots, target, page_size),
        )

    def _take_logprobs(
        self,
        raw: Tensor,
        slots: Sequence[int],
        asked: Sequence[int],
        rows: Sequence[Sequence[int]],
        outcomes: dict[int, Outcome],
    ) -> None:
        """Of every committed token of the slots number `asked`, from the target's logits `raw` [rows, vocab]."""
        if not asked:
            return
        wanted = [row for index in asked for row in rows[index]]
        token_ids = [token_id for index in asked for token_id in outcomes[slots[index]].token_ids]
        top = [self._requests[slots[index]].sampling.top_logprobs for index in asked for _ in rows[index]]
        found = gather_logprobs(raw[wanted], torch.tensor(token_ids, device=raw.device), top)
        logprobs = [logprob for logprob in found if logprob]
        for index in asked:
            count = len(rows[index])
            outcomes[slots[index]].logprobs, logprobs = logprobs[:count], logprobs[count:]

    def _score_prompt(self, chunk: PrefillChunk, hidden: Tensor, outcome: Outcome) -> None:
        """Logprobs of prompt tokens from a chunk's rows `hidden` [length, D], the head in blocks of bounded size."""
        request = self._requests[chunk.slot]
        if request.sampling.prompt_logprobs_from is None:
            return
        positions = scored_rows(chunk, request.prompt_len, request.sampling.prompt_logprobs_from)
        top = request.sampling.top_logprobs or 0
        scored: list[Logprob] = []
        block_rows = max(_MAX_LOGIT_ELEMENTS // self._vocab_size, 1)
        for begin in range(positions.start, positions.stop, block_rows):
            end = min(begin + block_rows, positions.stop)
            logits = self._model.compute_logits(hidden[begin - chunk.start : end - chunk.start])
            targets = self._state.prompts[chunk.slot][begin + 1 : end + 1]
            scored.extend(logprob for logprob in gather_logprobs(logits, targets, [top] * (end - begin)) if logprob)
        outcome.prompt_logprobs = scored

    def _result(self, slot: int, outcome: Outcome | None) -> SlotResult:
        error = self._errors.get(slot)
        if error is not None or outcome is None:
            return SlotResult(slot, [], error=error or "the slot has no request")
        return SlotResult(
            slot, outcome.token_ids, outcome.logprobs, outcome.prompt_logprobs, num_drafts=outcome.num_drafts
        )


def _rows_of_runs(candidates: Candidates, nodes: Sequence[Sequence[int]], counts: Sequence[int]) -> list[list[int]]:
    """For each slot the sampled rows of its accepted path, where every slot has a row for each node of its tree."""
    rows, first = [], 0
    for path, count, num_drafts in zip(nodes, counts, candidates.num_drafts, strict=True):
        rows.append([first + node for node in path[:count]])
        first += 1 + num_drafts
    return rows
