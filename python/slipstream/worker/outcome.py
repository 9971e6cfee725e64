"""What a slot gets from one step, as it is being put together."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slipstream.messages.sampling import Logprob
from slipstream.messages.to_worker import PrefillChunk
from slipstream.sampling.candidates import Candidates
from slipstream.sampling.verify import Accepted


@dataclass
class Outcome:
    """See SlotResult."""

    token_ids: list[int] = field(default_factory=list)
    num_drafts: int = 0
    logprobs: list[Logprob] | None = None
    prompt_logprobs: list[Logprob] | None = None


@dataclass(frozen=True)
class Path:
    """What a sampled slot has drawn in one step: the accepted nodes of its tree, and a token after each of them.

    Of a chunk, and of a decode slot without drafts, there is only the root.
    """

    slot: int
    start: int  # position of the root
    first_row: int  # of the root, among the sampled rows
    nodes: list[int]  # from the root down
    token_ids: list[int]  # token_ids[i] comes after nodes[i]; the last is the bonus token
    num_drafts: int  # that were verified
    is_finite: bool  # False: some logits on the path were no numbers, and the request cannot go on


@dataclass(frozen=True)
class Run:
    """Rows of one slot that a step has made final, in the order of their positions; for the draft."""

    slot: int
    start: int  # position of the first row
    rows: Sequence[int]  # of the step
    successors: Tensor  # int64 [rows]: the token after each


def paths_of(
    slots: Sequence[int], first_positions: Sequence[int], candidates: Candidates, accepted: Accepted
) -> list[Path]:
    """One for each of `slots`, whose roots draw the tokens for `first_positions`. Waits for the device."""
    counts, is_finite = accepted.num_tokens.tolist(), accepted.is_finite.tolist()
    nodes, token_ids = accepted.nodes.tolist(), accepted.token_ids.tolist()
    paths, first_row = [], 0
    for index, (slot, num_drafts) in enumerate(zip(slots, candidates.num_drafts, strict=True)):
        count = counts[index]
        paths.append(
            Path(
                slot,
                first_positions[index] - 1,
                first_row,
                nodes[index][:count],
                token_ids[index][:count],
                num_drafts,
                is_finite[index],
            )
        )
        first_row += 1 + num_drafts
    return paths


def run_of_path(path: Path, device: torch.device) -> Run:
    """Of a decode slot, whose rows in the step are its sampled rows."""
    rows = [path.first_row + node for node in path.nodes]
    return Run(path.slot, path.start, rows, torch.tensor(path.token_ids, device=device))


def run_of_chunk(chunk: PrefillChunk, last_row: int, prompt: Tensor, sampled: Sequence[int]) -> Run:
    """Of a chunk that ends in row `last_row` of the step. After the prompt's last token comes the `sampled` one."""
    successors = prompt[chunk.start + 1 : chunk.start + chunk.length + 1]
    if chunk.last:
        successors = torch.cat((successors, prompt.new_tensor(sampled)))
    return Run(chunk.slot, chunk.start, range(last_row + 1 - chunk.length, last_row + 1), successors)
