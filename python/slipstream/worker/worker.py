"""Executes plans: weights, KV pages and the state of every slot are here, decisions are not."""

import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.attention.base import AttentionBackend
from slipstream.attention.move_rows import move_rows
from slipstream.attention.paging import locate
from slipstream.errors import RequestError
from slipstream.layers.upload import upload
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
from slipstream.worker.images import ImageStore
from slipstream.worker.outcome import Outcome, Path, paths_of, run_of_chunk, run_of_path
from slipstream.worker.speculation import Speculation
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


@dataclass(frozen=True)
class WorkerParts:
    """What build_worker() makes."""

    model: CausalLM
    attention: AttentionBackend
    caches: Sequence[Tensor]
    state: DeviceState
    sampler: Sampler
    verifier: Verifier
    images: ImageStore | None  # None: the model takes text only
    speculation: Speculation | None  # None: nothing is drafted
    vocab_size: int
    ready: WorkerReady
    parameters_per_layer: int


class Worker:
    """One rank. It executes plans in the order in which they are submitted; `ready` says what it has."""

    def __init__(self, parts: WorkerParts) -> None:
        self.parts, self.ready = parts, parts.ready
        self._parameters_per_layer = parts.parameters_per_layer
        self._num_cores: int = parts.ready.info["num_cores"]
        self._model = parts.model
        self._attention = parts.attention
        self._caches = parts.caches
        self._state = parts.state
        self._sampler = parts.sampler
        self._verifier = parts.verifier
        self._images = parts.images
        self._speculation = parts.speculation
        self._vocab_size = parts.vocab_size
        self._requests: dict[int, _Request] = {}
        self._errors: dict[int, str] = {}  # slots whose request cannot go on, until they are released
        self._done: list[StepResult] = []  # since finished() was called last

    @property
    def num_pending(self) -> int:
        """Plans whose results finished() has still to give, some day without another call."""
        return 0

    def submit(self, plan: Plan) -> None:
        """Take one plan; plans come in stream order."""
        self._done.append(self.step(plan))

    def finished(self) -> list[StepResult]:
        """The results that are there since the last call, in the order of their plans."""
        done, self._done = self._done, []
        return done

    @torch.inference_mode()
    def step(self, plan: Plan) -> StepResult:
        """Execute one plan, and wait for its result. A request that fails is a result with `error`."""
        started = time.perf_counter()
        self._admit(plan)
        return self._execute(plan, started)

    def _execute(self, plan: Plan, started: float) -> StepResult:
        """The rows of a plan whose requests are admitted."""
        decode, chunks = self._runnable(plan)
        outcomes = {slot: Outcome() for slot in (*decode, *(chunk.slot for chunk in chunks))}
        if outcomes:
            candidates = self._propose(decode, plan.draft_depths)
            self._compute(build_batch(self._state, decode, candidates, chunks), chunks, outcomes)
        slots = [*plan.decode, *(chunk.slot for chunk in plan.chunks)]
        return StepResult(
            plan.step, [self._result(slot, outcomes.get(slot)) for slot in slots], time.perf_counter() - started
        )

    def _runnable(self, plan: Plan) -> tuple[list[int], list[PrefillChunk]]:
        """Decode slots and chunks of requests that have not failed."""
        decode = [slot for slot in plan.decode if slot not in self._errors]
        return decode, [chunk for chunk in plan.chunks if chunk.slot not in self._errors]

    def _admit(self, plan: Plan) -> None:
        for slot in plan.release:
            self._state.release(slot)
            self._sampler.release(slot)
            self._verifier.release(slot)
            if self._images is not None:
                self._images.release(slot)
            if self._speculation is not None:
                self._speculation.release(slot)
            self._requests.pop(slot, None)
            self._errors.pop(slot, None)
        for new in plan.new:
            self._add(new)
        if self._speculation is not None:
            for slot in plan.cold:
                self._speculation.release(slot)
        for slot, pages in plan.pages:
            if slot not in self._errors:
                self._state.append_pages(slot, pages)

    def _add(self, new: NewRequest) -> None:
        self._requests[new.slot] = _Request(new.sampling, new.prompt_len)
        token_ids = _known_ids(new.token_ids, self._vocab_size)
        if token_ids is None:
            self._errors[new.slot] = f"a token id lies outside the vocabulary of {self._vocab_size}"
            return
        try:
            if new.images:
                self._add_images(new)
            self._state.add(new.slot, token_ids, new.pages, new.num_cached)
            self._sampler.add(new.slot, new.sampling, new.token_ids, new.prompt_len)
        except RequestError as error:
            self._errors[new.slot] = str(error)
            return
        self._verifier.add(new.slot, new.sampling)
        if self._speculation is not None:
            self._speculation.add(new)

    def _add_images(self, new: NewRequest) -> None:
        if self._images is None:
            raise RequestError("the request has images, but the model takes text only")
        self._images.add(new.slot, new.token_ids, new.images)

    def _propose(self, decode: Sequence[int], depths: dict[int, int]) -> Candidates:
        """The drafts that this step verifies."""
        if self._speculation is None or not depths:
            return Candidates.none(len(decode), self._state.bonus.device)
        self._set_threads(len(decode))
        return self._speculation.propose(decode, depths)

    def _compute(self, batch: Batch, chunks: Sequence[PrefillChunk], outcomes: dict[int, Outcome]) -> None:
        """One forward pass over all rows, then everything that reads its result."""
        state = self._state
        for chunk in chunks:
            assert chunk.start == state.committed_len_cpu[chunk.slot], f"{chunk} does not continue its slot"
        images = self._image_rows(batch.num_decode_rows, chunks)
        self._set_threads(len(batch.token_ids))
        self._attention.plan(batch.layout)
        x = self._model.embed(batch.token_ids, images)
        hidden = self._model.forward(x, batch.positions, self._attention)
        for chunk, last_row in zip(chunks, last_row_of_each(batch.num_decode_rows, chunks), strict=True):
            state.set_committed_len(chunk.slot, chunk.start + chunk.length)
            self._score_prompt(chunk, hidden[last_row + 1 - chunk.length : last_row + 1], outcomes[chunk.slot])
        self._check_chunks(batch.num_decode_rows, chunks, hidden)
        paths: list[Path] = []
        if batch.sampled_slots:
            rows = hidden
            if len(batch.sampled_rows) != len(hidden):
                rows = hidden.index_select(0, upload(batch.sampled_rows, torch.int64, hidden.device))
            paths = self._sample(batch.sampled_slots, batch.first_positions, batch.candidates, rows, outcomes)
        decoded = [path for path in paths if path.first_row < batch.num_decode_rows]
        self._commit(decoded, batch.candidates.is_chain)
        if self._speculation is not None:
            sampled = {path.slot: path.token_ids for path in paths}
            self._extend_draft(self._speculation, decoded, chunks, sampled, batch.num_decode_rows, hidden)
        if self._images is not None:
            for chunk in chunks:
                if chunk.last:
                    self._images.release(chunk.slot)

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

    def _sample(
        self,
        slots: Sequence[int],
        first_positions: Sequence[int],
        candidates: Candidates,
        hidden: Tensor,
        outcomes: dict[int, Outcome],
    ) -> list[Path]:
        """Verify the candidates of `slots` from the hidden states [R, D] of all their nodes, and draw the next token of
        each; returns the paths of those that go on. `first_positions`: of the tokens that the roots draw.

        A slot on whose path the logits are not finite ends its own request only.
        """
        logits = self._model.compute_logits(hidden)
        raw = self._raw_logits(logits, slots, candidates)
        accepted = self._verifier.verify(logits, slots, first_positions, candidates)
        self._state.bonus.index_copy_(0, upload(slots, torch.int64, logits.device), accepted.bonus)
        paths = paths_of(slots, first_positions, candidates, accepted)
        for path in paths:
            if path.is_finite:
                outcomes[path.slot].token_ids, outcomes[path.slot].num_drafts = path.token_ids, path.num_drafts
            else:
                self._errors[path.slot] = NOT_FINITE
        paths = [path for path in paths if path.is_finite]
        self._take_logprobs(raw, [path for path in paths if path.slot in raw], outcomes)
        if self._sampler.uses_paths(slots):
            drawn = [(path.slot, token_id) for path in paths for token_id in path.token_ids]
            self._sampler.record(
                [slot for slot, _ in drawn], torch.tensor([token for _, token in drawn], device=logits.device)
            )
        return paths

    def _raw_logits(self, logits: Tensor, slots: Sequence[int], candidates: Candidates) -> dict[int, Tensor]:
        """slot -> [nodes, vocab], the logits of a slot that wants logprobs before sampling changes them."""
        raw, first_row = {}, 0
        for slot, num_drafts in zip(slots, candidates.num_drafts, strict=True):
            if self._requests[slot].sampling.top_logprobs is not None:
                raw[slot] = logits[first_row : first_row + 1 + num_drafts].clone()
            first_row += 1 + num_drafts
        return raw

    def _take_logprobs(self, raw: dict[int, Tensor], paths: Sequence[Path], outcomes: dict[int, Outcome]) -> None:
        """Of every token of `paths`, whose slots are in `raw`."""
        if not paths:
            return
        logits = torch.cat([raw[path.slot][path.nodes] for path in paths])
        token_ids = torch.tensor([token_id for path in paths for token_id in path.token_ids], device=logits.device)
        top = [self._requests[path.slot].sampling.top_logprobs for path in paths for _ in path.nodes]
        found = [logprob for logprob in gather_logprobs(logits, token_ids, top) if logprob]
        for path in paths:
            count = len(path.nodes)
            outcomes[path.slot].logprobs, found = found[:count], found[count:]

    def _commit(self, paths: Sequence[Path], is_chain: bool) -> None:
        """Decode slots have gone these ways. KV of a way through a tree is moved to where its tokens stand."""
        if not paths:
            return
        state, slots = self._state, [path.slot for path in paths]
        if not is_chain:
            self._move_accepted(paths)
        state.commit(slots, [len(path.nodes) for path in paths])

    def _move_accepted(self, paths: Sequence[Path]) -> None:
        moves = [
            (path.slot, path.start + node, path.start + level)
            for path in paths
            for level, node in enumerate(path.nodes)
            if node != level
        ]
        if not moves:
            return
        slots, source, target = torch.tensor(moves, device=self._state.bonus.device).unbind(1)
        tables, page_size = self._state.page_tables, self._state.page_size
        move_rows(self._caches, locate(tables, slots, source, page_size), locate(tables, slots, target, page_size))

    def _extend_draft(
        self,
        speculation: Speculation,
        decoded: Sequence[Path],
        chunks: Sequence[PrefillChunk],
        sampled: dict[int, list[int]],
        num_decode_rows: int,
        hidden: Tensor,
    ) -> None:
        """Tell the speculator what has become final of slots that it follows. `sampled`: what each slot has drawn."""
        runs = [run_of_path(path, hidden.device) for path in decoded if speculation.follows(path.slot)]
        num_decode, num_rows = len(runs), sum(len(run.rows) for run in runs)
        kept = []
        for chunk, last_row in zip(chunks, last_row_of_each(num_decode_rows, chunks), strict=True):
            if speculation.follows(chunk.slot) and chunk.slot not in self._errors:
                kept.append(chunk)
                runs.append(run_of_chunk(chunk, last_row, self._state.prompt(chunk.slot), sampled.get(chunk.slot, [])))
        if runs:
            images = self._image_rows(num_rows, kept, ahead=1)
            self._set_threads(sum(len(run.rows) for run in runs))
            speculation.extend(runs, num_decode, hidden, images)

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
            targets = self._state.prompt(chunk.slot)[begin + 1 : end + 1]
            scored.extend(logprob for logprob in gather_logprobs(logits, targets, [top] * (end - begin)) if logprob)
        outcome.prompt_logprobs = scored

    def _result(self, slot: int, outcome: Outcome | None) -> SlotResult:
        error = self._errors.get(slot)
        if error is not None or outcome is None:
            return SlotResult(slot, [], error=error or "the slot has no request")
        return SlotResult(
            slot, outcome.token_ids, outcome.logprobs, outcome.prompt_logprobs, num_drafts=outcome.num_drafts
        )


def _known_ids(token_ids: Sequence[int], vocab_size: int) -> Tensor | None:
    """int64 [tokens] on the host; None: one of them lies outside the vocabulary."""
    try:
        ids = torch.frombuffer(array("q", token_ids), dtype=torch.int64)  # several times as fast as from a list
    except OverflowError:
        return None
    lowest, highest = ids.aminmax()
    return ids if 0 <= int(lowest) <= int(highest) < vocab_size else None
