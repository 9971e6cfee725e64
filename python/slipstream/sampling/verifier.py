"""Decides how many drafts of each slot stand."""

from collections.abc import Sequence

import torch
from torch import Tensor

from slipstream.config.drafting import MAX_DRAFTS
from slipstream.messages.sampling import SamplingParams
from slipstream.sampling.candidates import Candidates
from slipstream.sampling.noise import Stream
from slipstream.sampling.rejection import reject
from slipstream.sampling.sampler import Sampler
from slipstream.sampling.simulated import Simulation, first_children
from slipstream.sampling.verify import Accepted, Way, verify


class Verifier:
    """Draws the target's tokens and accepts drafts by one rule for all: simulated acceptance if there is a simulation,
    else rejection sampling if the sampler proposes drafts for it, else the exact rule.
    """

    def __init__(self, sampler: Sampler, simulation: Simulation | None = None) -> None:
        self._sampler = sampler
        self._simulation = simulation
        self._caps: dict[int, int] = {}  # slots with an accept_cap

    def add(self, slot: int, params: SamplingParams) -> None:
        """Take a request into a slot; the sampler takes it as well."""
        self.release(slot)
        if params.accept_cap is not None:
            self._caps[slot] = params.accept_cap

    def release(self, slot: int) -> None:
        """Forget a slot; nothing happens if it is empty."""
        self._caps.pop(slot, None)
        if self._simulation is not None:
            self._simulation.release(slot)

    def cap(self, slot: int) -> int:
        """How many drafts of the slot may be accepted in one step."""
        return self._caps.get(slot, MAX_DRAFTS)

    def verify(
        self, logits: Tensor, slots: Sequence[int], first_positions: Sequence[int], candidates: Candidates
    ) -> Accepted:
        """Verify the candidates of B slots, recording nothing.

        logits: [R, vocab] fp32 of the target at all nodes; they are modified. first_positions: position of the token
        that each root draws, committed_len + 1. A node whose logits are not finite draws some id of the vocabulary,
        and harms nobody but the slot whose accepted nodes it is one of.
        """
        is_finite = logits.sum(-1).isfinite()  # one NaN or infinity makes the sum one
        row_slots, positions = expand_rows(slots, first_positions, candidates)
        paths = candidates.paths() if candidates.num_nodes > 1 and self._sampler.uses_paths(slots) else None
        finite_nodes, caps = candidates.per_node(is_finite), self._caps_of(slots, logits.device)
        if self._sampler.rejection_sampling and self._simulation is None:
            probs = self._sampler.probabilities(logits, row_slots, positions, paths)
            way, last = self._reject(probs, slots, first_positions, candidates)
        else:
            drawn = candidates.per_node(self._sampler.draw(logits, row_slots, positions, paths))
            if self._simulation is None:
                return verify(candidates, drawn, finite_nodes, caps)
            way = self._simulate(self._simulation, slots, first_positions, candidates, caps)
            last = drawn.gather(1, way.nodes.gather(1, way.length[:, None]))[:, 0]
        return Accepted.cut(way.nodes, way.token_ids(candidates, last), way.length + 1, finite_nodes, caps)

    def _reject(
        self, target_probs: Tensor, slots: Sequence[int], first_positions: Sequence[int], candidates: Candidates
    ) -> tuple[Way, Tensor]:
        assert candidates.is_chain, "rejection sampling is for chains"
        num_drafts = candidates.num_nodes - 1
        each = [slot for slot in slots for _ in range(num_drafts)]
        positions = [first + level for first in first_positions for level in range(num_drafts)]
        coins = self._sampler.coins(each, positions, Stream.ACCEPT).view(len(slots), num_drafts)
        way, rest = reject(candidates, target_probs, coins)
        firsts = torch.tensor(first_positions, device=way.length.device)
        return way, self._sampler.draw_from(rest, slots, firsts + way.length)

    def _simulate(
        self,
        simulation: Simulation,
        slots: Sequence[int],
        first_positions: Sequence[int],
        candidates: Candidates,
        caps: Tensor | None,
    ) -> Way:
        coins = self._sampler.coins(slots, first_positions, Stream.SIMULATION)
        wanted = simulation.lengths(slots, candidates.num_drafts, coins)
        if caps is not None:
            wanted = wanted.minimum(caps)
        way = first_children(candidates)
        return Way(way.nodes, way.length.minimum(wanted))

    def _caps_of(self, slots: Sequence[int], device: torch.device) -> Tensor | None:
        if self._caps.keys().isdisjoint(slots):
            return None
        no_cap = torch.iinfo(torch.int64).max - 1
        return torch.tensor([self._caps.get(slot, no_cap) for slot in slots], device=device)


def expand_rows(
    slots: Sequence[int], first_positions: Sequence[int], candidates: Candidates
) -> tuple[list[int], list[int]]:
    """For each of the R rows its slot and the position of the token that it draws.

    Drafts (1, 2) of slots (4, 7), both chains, first positions (10, 20) -> [4, 4, 7, 7, 7], [10, 11, 20, 21, 22].
    """
    per_slot = list(zip(slots, first_positions, candidates.num_drafts, strict=True))
    row_slots = [slot for slot, _, num_drafts in per_slot for _ in range(num_drafts + 1)]
    if candidates.is_chain:
        return row_slots, [first + depth for _, first, num_drafts in per_slot for depth in range(num_drafts + 1)]
    positions = [
        first + depth
        for (_, first, num_drafts), depths in zip(per_slot, candidates.depths.tolist(), strict=True)
        for depth in depths[: num_drafts + 1]
    ]
    return row_slots, positions
