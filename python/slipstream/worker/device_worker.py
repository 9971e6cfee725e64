"""A worker that never waits for the device between two steps."""

import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from slipstream.errors import WorkerDied
from slipstream.layers.upload import upload
from slipstream.messages.to_scheduler import SlotResult, StepResult
from slipstream.messages.to_worker import NewRequest, Plan, PrefillChunk
from slipstream.sampling.candidates import Candidates
from slipstream.worker.decode_program import DecodeProgram
from slipstream.worker.device_parts import DeviceParts
from slipstream.worker.naming import naming
from slipstream.worker.outcome import Outcome, Path
from slipstream.worker.pending import Moment, PendingStep, description, drawn_tokens, to_host
from slipstream.worker.prefill_program import PrefillShape
from slipstream.worker.step_graphs import DecodeRun, StepGraphs
from slipstream.worker.worker import NOT_FINITE, Worker, WorkerParts


class DeviceWorker(Worker):
    """Launches a step when its plan comes, and says what came of it when the device is done.

    Lengths, tokens and drafts stay on the device; a plan does not depend on them. Where the host has a say in what a
    decode step draws (penalties, bias, logprobs), it waits for the steps before, and draws between the step's two
    segments. A step with images, or with such requests' prompts, is executed as Worker does.
    """

    def __init__(self, parts: WorkerParts, device_parts: DeviceParts, graphs: StepGraphs) -> None:
        super().__init__(parts)
        self._device_parts, self._graphs = device_parts, graphs
        self._pending: deque[PendingStep] = deque()
        self._generations: dict[int, int] = {}  # how many requests a slot has had
        self._scored: set[int] = set()  # slots that want logprobs
        self._prompt_scored: set[int] = set()  # slots that want those of their prompt
        self._speculator_is_behind = False  # steps have run that it has not heard of

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    def submit(self, plan: Plan) -> None:
        """Launch one plan; plans come in stream order."""
        started, begun = time.perf_counter(), Moment(self._device_parts.device)
        with torch.inference_mode(), _naming(plan.step, description(plan.chunks, plan.decode)):
            self._admit(plan)
            if not self._runs_on_device(plan):
                self._wait_for_all()
                self._tell_speculator()
                self._done.append(self._execute(plan, started))
            elif self._is_plain(plan.decode):
                self._pending.append(self._launch(plan, begun))
            else:
                self._wait_for_all()
                self._done.append(self._draw_on_host(plan, started))

    def finished(self) -> list[StepResult]:
        while self._pending and self._is_done(self._pending[0]):
            self._done.append(self._collect(self._pending.popleft()))
        return super().finished()

    def step(self, plan: Plan) -> StepResult:
        """Execute one plan, and wait for its result."""
        self.submit(plan)
        self._wait_for_all()
        return self._done.pop()

    def _wait_for_all(self) -> None:
        while self._pending:
            pending = self._pending.popleft()
            with _naming(pending.plan.step, pending.description):
                pending.ended.wait()
            self._done.append(self._collect(pending))

    def _is_done(self, pending: PendingStep) -> bool:
        with _naming(pending.plan.step, pending.description):
            return pending.ended.is_past

    def _runs_on_device(self, plan: Plan) -> bool:
        """Whether the programs can run the plan's rows. Of chunks they draw too, so the host may have no say there."""
        if self._images is not None and self._images.in_use:
            return False
        slots = [chunk.slot for chunk in plan.chunks]
        return self._is_plain(slots) and self._prompt_scored.isdisjoint(slots)

    def _is_plain(self, slots: Sequence[int]) -> bool:
        """Whether the device can draw for these slots: nobody asks for what only the host does."""
        return self._scored.isdisjoint(slots) and self._sampler.is_plain(slots)

    def _admit(self, plan: Plan) -> None:
        for slot in plan.release:
            self._scored.discard(slot)
            self._prompt_scored.discard(slot)
        super()._admit(plan)

    def _add(self, new: NewRequest) -> None:
        self._generations[new.slot] = self._generations.get(new.slot, 0) + 1
        if new.sampling.top_logprobs is not None:
            self._scored.add(new.slot)
        if new.sampling.prompt_logprobs_from is not None:
            self._prompt_scored.add(new.slot)
        super()._add(new)

    def _launch(self, plan: Plan, begun: Moment) -> PendingStep:
        decode, chunks = self._runnable(plan)
        generations = {slot: self._generations[slot] for slot in (*decode, *(chunk.slot for chunk in chunks))}
        chunk_results = self._launch_chunks(chunks) if chunks else None
        num_drafts = self._num_drafts(plan, decode)
        decode_results = self._launch_decode(decode, num_drafts) if decode else None
        self._speculator_is_behind = True
        ended = Moment(self._device_parts.device)
        return PendingStep(plan, begun, ended, generations, decode, num_drafts, decode_results, chunks, chunk_results)

    def _launch_chunks(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        for chunk in chunks:
            assert chunk.start == self._state.committed_len_cpu[chunk.slot], f"{chunk} does not continue its slot"
            self._state.committed_len_cpu[chunk.slot] = chunk.start + chunk.length
        extends = any(self._follows(chunk.slot) for chunk in chunks)
        program, replay = self._graphs.prefill(PrefillShape.of(chunks), extends)
        program.load(chunks, self._state.prompts_cpu)
        if replay is None:
            program.plan_on_host(chunks)
        (replay or program.run)()
        return to_host(program.results)

    def _launch_decode(self, slots: list[int], num_drafts: list[int]) -> Tensor:
        run = self._forward(slots, num_drafts)
        run.tail()
        return to_host(run.program.results)

    def _forward(self, slots: list[int], num_drafts: list[int]) -> DecodeRun:
        extends = any(self._follows(slot) for slot in slots)
        run = self._graphs.decode(len(slots), max(num_drafts), extends)
        most = [min(count, self._verifier.cap(slot)) for slot, count in zip(slots, num_drafts, strict=True)]
        run.program.load(slots, most)
        run.forward()
        return run

    def _draw_on_host(self, plan: Plan, started: float) -> StepResult:
        """Execute a plan in whose decode slots the host has a say: between the segments it draws for all of them. All
        steps before have returned.
        """
        decode, chunks = self._runnable(plan)
        outcomes = {slot: Outcome() for slot in (*decode, *(chunk.slot for chunk in chunks))}
        chunk_results = self._launch_chunks(chunks) if chunks else None
        if decode:
            num_drafts = self._num_drafts(plan, decode)
            run = self._forward(decode, num_drafts)
            paths = self._sample_forward(run.program, decode, num_drafts, outcomes)
            self._commit(paths, is_chain=True)
            drawn = {path.slot: path.token_ids for path in paths}
            run.program.extend([drawn.get(slot, []) for slot in decode])
        self._speculator_is_behind = True
        if chunk_results is not None:
            Moment(self._device_parts.device).wait()
            for chunk, (token_ids, is_finite) in zip(chunks, drawn_tokens(chunk_results), strict=False):
                outcomes[chunk.slot].token_ids = token_ids
                if not is_finite:
                    self._errors[chunk.slot] = NOT_FINITE
        slots = [*plan.decode, *(chunk.slot for chunk in plan.chunks)]
        results = [self._result(slot, outcomes.get(slot)) for slot in slots]
        return StepResult(plan.step, results, time.perf_counter() - started)

    def _sample_forward(
        self, program: DecodeProgram, slots: list[int], num_drafts: list[int], outcomes: dict[int, Outcome]
    ) -> list[Path]:
        """Of the rows that forward() has computed those of wanted drafts are looked at."""
        device, width = self._device_parts.device, program.depth + 1
        rows = [index * width + node for index, count in enumerate(num_drafts) for node in range(count + 1)]
        first_positions = [self._state.committed_len_cpu[slot] + 1 for slot in slots]
        drafts = program.drafts[: len(slots), : max(num_drafts)]
        hidden = program.hidden.index_select(0, upload(rows, torch.int64, device))
        return self._sample(slots, first_positions, Candidates.chain(num_drafts, drafts), hidden, outcomes)

    def _num_drafts(self, plan: Plan, slots: Sequence[int]) -> list[int]:
        """Of each slot; a slot that the draft does not follow has none."""
        return [plan.draft_depths.get(slot, 0) if self._follows(slot) else 0 for slot in slots]

    def _follows(self, slot: int) -> bool:
        return self._speculation is not None and self._speculation.follows(slot)

    def _tell_speculator(self) -> None:
        """What the programs have done for the slots that it follows."""
        if self._speculation is not None and self._speculator_is_behind:
            self._speculation.assume_complete()
        self._speculator_is_behind = False

    def _collect(self, pending: PendingStep) -> StepResult:
        """Take in what a step that is done has brought."""
        found: dict[int, SlotResult] = {}
        if pending.chunk_results is not None:
            for chunk, (token_ids, is_finite) in zip(pending.chunks, drawn_tokens(pending.chunk_results), strict=False):
                found[chunk.slot] = self._slot_result(pending, chunk.slot, token_ids, is_finite, 0)
        if pending.decode_results is not None:
            drawn = drawn_tokens(pending.decode_results)
            for slot, count, (token_ids, is_finite) in zip(pending.decode, pending.num_drafts, drawn, strict=False):
                if pending.generations[slot] == self._generations[slot]:
                    self._state.committed_len_cpu[slot] += len(token_ids)
                found[slot] = self._slot_result(pending, slot, token_ids, is_finite, count)
        plan = pending.plan
        slots = [*plan.decode, *(chunk.slot for chunk in plan.chunks)]
        results = [found.get(slot) or self._result(slot, None) for slot in slots]
        return StepResult(plan.step, results, pending.ended.seconds_since(pending.begun))

    def _slot_result(
        self, pending: PendingStep, slot: int, token_ids: list[int], is_finite: bool, num_drafts: int
    ) -> SlotResult:
        """A request that cannot go on fails alone, if it has the slot still."""
        if is_finite:
            return SlotResult(slot, token_ids, num_drafts=num_drafts)
        if pending.generations[slot] == self._generations[slot] and slot in self._requests:
            self._errors[slot] = NOT_FINITE
        return SlotResult(slot, [], error=NOT_FINITE)


def _naming(step: int, what: str) -> AbstractContextManager[None]:
    flags = "--mem-fraction-static, --max-running-requests or --chunked-prefill-size"
    return naming(f"step {step} ({what})", flags, WorkerDied)
