"""From the timing of one shape to its row: figures, floors and what they were measured with."""

from dataclasses import dataclass, replace

from slipstream.bench.devices import DeviceSpeed
from slipstream.bench.floors import PairCost, Work, decoder_cost
from slipstream.bench.one_batch import Shape, Timing
from slipstream.bench.results import today
from slipstream.bench.rows import OneBatchRow
from slipstream.launch.prepare import Prepared

_DTYPE_BYTES = {"float32": 4}  # all others: 2


@dataclass(frozen=True)
class Setting:
    """What all shapes of one engine share."""

    engine: str
    preset: str | None
    in_process: bool
    prepared: Prepared
    device_name: str | None
    speed: DeviceSpeed | None  # None: not known, and no floors
    start_s: float
    command: str

    @property
    def num_drafts(self) -> int:
        """K, 0 without drafts."""
        drafts = self.prepared.resolved.scheduler.drafts
        return drafts.shape.depth if drafts is not None else 0

    @property
    def simulated_length(self) -> float | None:
        drafts = self.prepared.resolved.worker.drafts
        return drafts.simulated_length if drafts is not None else None


def measured_row(timing: Timing, setting: Setting) -> OneBatchRow:
    """Percentages are 100 where a time is its floor."""
    shape, resolved = timing.shape, setting.prepared.resolved
    tpot_ms, median_ms = (None if s is None else 1000 * s for s in (timing.tpot_s, timing.tpot_median_s))
    length = timing.drafts.acceptance_length
    cost = pair_cost(setting.prepared)
    step, prefill = works(cost, shape) if isinstance(cost, PairCost) else (None, None)
    per_step = setting.simulated_length or length or 1.0
    floor_ms = _floor_ms(step, setting, per_step) if tpot_ms is not None else None
    prefill_floor_ms = _floor_ms(prefill, setting)
    return OneBatchRow(
        engine=setting.engine, model=resolved.server.served_model_name, batch_size=shape.batch_size,
        input_len=shape.input_len, output_len=shape.output_len, ttft_s=timing.ttft_s, tpot_ms=tpot_ms,
        decode_tok_s=None if tpot_ms is None else 1000 * shape.batch_size / tpot_ms,
        speculative=setting.num_drafts > 0, acceptance_length=length, date=today(), command=setting.command,
        preset=setting.preset, in_process=setting.in_process, dtype=resolved.worker.dtype,
        device=resolved.worker.device, device_name=setting.device_name, num_gpus=1, start_s=setting.start_s,
        ttft_median_s=timing.ttft_median_s, tpot_median_ms=median_ms,
        prefill_tok_s=shape.batch_size * shape.input_len / timing.ttft_s,
        floor_ms=floor_ms, floor_percent=_percent(floor_ms, tpot_ms),
        prefill_floor_ms=prefill_floor_ms, prefill_floor_percent=_percent(prefill_floor_ms, 1000 * timing.ttft_s),
        num_drafts=setting.num_drafts, simulated_length=setting.simulated_length,
        step_bytes=step.num_bytes if step is not None else None, step_flops=step.flops if step is not None else None,
        prefill_bytes=prefill.num_bytes if prefill is not None else None,
        prefill_flops=prefill.flops if prefill is not None else None,
        one_token_runs_s=list(timing.one_token_s), all_tokens_runs_s=list(timing.all_tokens_s),
    )  # fmt: skip


def pair_cost(prepared: Prepared) -> PairCost | str:
    """What its steps cost; a clause that says why that is not known, for others."""
    resolved, drafts = prepared.resolved, prepared.resolved.scheduler.drafts
    num_bytes = _DTYPE_BYTES.get(resolved.worker.dtype, 2)
    target = decoder_cost(prepared.spec.text_config, num_bytes, is_fp8=prepared.spec.quantization is not None)
    if target is None:
        return "the model is not a dense one with grouped-query attention"
    if drafts is None or resolved.worker.drafts is None:
        return PairCost(target)
    if drafts.adaptive:
        return "K follows load and acceptance (see --speculative-adaptive)"
    spec = prepared.draft
    if spec is None or not drafts.shape.is_chain:
        return "drafts are looked up" if spec is None else "drafts form a tree"
    own_bytes = _DTYPE_BYTES.get(resolved.worker.drafts.dtype or resolved.worker.dtype, 2)
    draft = decoder_cost(spec.text_config, own_bytes, is_fp8=spec.quantization is not None, is_draft=True)
    if draft is None:
        return "the draft is not a dense one with grouped-query attention"
    # its head is the target's, in the target's dtype
    draft = replace(draft, head_bytes=target.head_bytes)
    return PairCost(target, draft, drafts.shape.depth)


def works(cost: PairCost, shape: Shape) -> tuple[Work, Work]:
    """A decode step in the middle of the answers, and the prefill of the batch."""
    context = shape.input_len + shape.output_len / 2
    return cost.decode_step(shape.batch_size, context), cost.prefill(shape.batch_size, shape.input_len)


def _floor_ms(work: Work | None, setting: Setting, per_step: float = 1.0) -> float | None:
    """Of one token where `per_step` of them come out of a step."""
    if work is None or setting.speed is None:
        return None
    is_bf16 = setting.prepared.resolved.worker.dtype != "float32" and setting.prepared.spec.quantization is None
    return 1000 * work.seconds(setting.speed, counts_flops=is_bf16) / per_step


def _percent(floor_ms: float | None, value_ms: float | None) -> float | None:
    return 100 * floor_ms / value_ms if floor_ms is not None and value_ms is not None else None
