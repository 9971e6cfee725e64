"""What a start says of its drafts: how it speculates, and whether that is worth anything."""

from slipstream.config.drafting import DraftShape
from slipstream.config.processes import WorkerDrafts
from slipstream.hf_transformers.spec import DrafterSpec, ModelSpec
from slipstream.launch.prepare import Prepared
from slipstream.launch.warm_up import WarmUp

LOWEST_LENGTH = 1.1  # of a pair that belongs together; 1 is no draft at all


def verdict(prepared: Prepared, warm_up: WarmUp) -> str:
    """One line: algorithm, sizes, and the acceptance length of the canned run."""
    drafts = _drafts(prepared)
    kind = f" ({prepared.draft.kind})" if prepared.draft else ""
    return f"speculation: {drafts.algorithm}{kind}, {_sizes(drafts.shape)}, {_measured(prepared, warm_up)}"


def verdict_warnings(prepared: Prepared, warm_up: WarmUp) -> list[str]:
    """What to know and to check where the drafts of a model are hardly ever accepted, or acceptance is pretended."""
    drafts, length, draft = _drafts(prepared), warm_up.acceptance_length, prepared.draft
    worker = prepared.resolved.worker
    if drafts.is_simulated:
        return ["acceptance is simulated: speeds are what it would make them, answers are wrong"]
    # with NGRAM a low length is natural: the question holds nothing to look up
    if length is None or length >= LOWEST_LENGTH or draft is None or _is_random(prepared):
        return []
    return [
        f"drafts are hardly ever accepted: an acceptance length under {LOWEST_LENGTH} gains nothing",
        f"check that the draft {draft.path} was made for this very target, {prepared.spec.path}, and was trained enough"
        f"{_dtypes_in_words(prepared.spec, draft, worker.dtype, drafts.dtype or worker.dtype)}; "
        "--speculative-algorithm none serves without drafts",
    ]


def _dtypes_in_words(target: ModelSpec, draft: DrafterSpec, target_dtype: str, draft_dtype: str) -> str:
    """Where those of the two models differ, as a part of a sentence; else ""."""
    if (target.dtype, target_dtype) == (draft.dtype, draft_dtype):
        return ""
    return (
        f", and the dtypes: the target is stored in {target.dtype} and runs in {target_dtype} (--dtype), the draft is "
        f"stored in {draft.dtype} and runs in {draft_dtype} (--speculative-draft-dtype)"
    )


def _drafts(prepared: Prepared) -> WorkerDrafts:
    drafts = prepared.resolved.worker.drafts
    assert drafts is not None, "there is no verdict without speculation"
    return drafts


def _measured(prepared: Prepared, warm_up: WarmUp) -> str:
    if warm_up.problem is not None and warm_up.stats is None:
        return f"not measured: {warm_up.problem}"
    length = warm_up.acceptance_length
    text = "nothing drafted in the warm-up" if length is None else f"warm-up acceptance length {length:.2f}"
    if _drafts(prepared).is_simulated:
        text += ", simulated"
    elif _is_random(prepared):
        text += ", which means nothing with random weights"
    return text if warm_up.problem is None else f"{text} ({warm_up.problem})"


def _sizes(shape: DraftShape) -> str:
    """
    >>> _sizes(DraftShape(3, 1, 3)), _sizes(DraftShape(5, 4, 7))
    ('K = 3', 'K = 5 in trees of 7 drafts (topk 4)')
    """
    tree = "" if shape.is_chain else f" in trees of {shape.num_nodes} drafts (topk {shape.topk})"
    return f"K = {shape.depth}{tree}"


def _is_random(prepared: Prepared) -> bool:
    """Whether weights of either model are random."""
    return not prepared.spec.tensors or (prepared.draft is not None and not prepared.draft.tensors)
