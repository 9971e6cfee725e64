"""An EAGLE speculator driven by hand, and an independent recomputation of what its draft predicts.

Of the target only embedding and head are used: its hidden states are random here, and which tokens are committed the
test says.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slipstream.attention.base import Layout
from slipstream.attention.torch_native import TorchNativeAttention
from slipstream.config.drafting import DraftShape
from slipstream.config.processes import WorkerDrafts
from slipstream.hf_transformers.inspect import inspect_draft
from slipstream.messages.sampling import SamplingParams
from slipstream.models.base import ImageRows
from slipstream.models.drafts.registry import DRAFT_MODELS
from slipstream.models.tables import TABLES
from slipstream.sampling.candidates import Candidates
from slipstream.sampling.paths import Paths
from slipstream.sampling.sampler import Sampler
from slipstream.speculative.base import Committed
from slipstream.speculative.eagle import EagleSpeculator
from slipstream.speculative.parts import LoadedDraft, SpeculatorParts
from slipstream.worker.kv_pool import allocate_caches
from slipstream.worker.weight_plan import WeightPlan
from support.models import load_model

CPU = torch.device("cpu")
NUM_SLOTS, VOCAB_SIZE, DIM, MAX_LEN = 6, 97, 48, 96
GREEDY = SamplingParams(max_new_tokens=64, seed=1, temperature=0.0)


class State:
    """See SlotState."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        pages = -(-MAX_LEN // page_size)
        order = torch.randperm(NUM_SLOTS * pages, generator=torch.Generator().manual_seed(3)) + 1
        self.page_tables = order.view(NUM_SLOTS, pages).to(torch.int32)  # in no order, without the sink
        self.num_pages = NUM_SLOTS * pages + 1
        self.committed_len_cpu = [0] * NUM_SLOTS
        self.bonus = torch.zeros(NUM_SLOTS, dtype=torch.int64)


class SpeculatorHarness:
    """`target` and `draft` are folders of checkpoints with vocabulary VOCAB_SIZE and width DIM."""

    def __init__(
        self, target: Path, draft: Path, shape: DraftShape, page_size: int = 4, rejection: bool = False
    ) -> None:
        self.spec = inspect_draft(str(draft))
        self.state = State(page_size)
        self.target, _ = load_model(target)
        self.model = self._model()
        self.layers = TABLES.get(self.spec.architecture).attention_layers(self.spec.config)
        self.samplers = [Sampler(NUM_SLOTS, VOCAB_SIZE, CPU, rejection_sampling=rejection) for _ in range(2)]
        caches = allocate_caches(self.layers, self.state.num_pages, page_size, torch.float32, CPU)
        for cache in caches:
            cache.fill_(float("nan"))  # what was never written must not be read
        self.parts = SpeculatorParts(
            drafts=WorkerDrafts("EAGLE", shape, 2, rejection_sampling=rejection),
            state=self.state,
            sampler=self.samplers[0],
            target=self.target,
            num_slots=NUM_SLOTS,
            vocab_size=VOCAB_SIZE,
            device=CPU,
            dtype=torch.float32,
            draft=LoadedDraft(self.spec, self._parameters(), self.layers, TorchNativeAttention, caches),
        )
        self.speculator = EagleSpeculator(self.parts)
        self.generator = torch.Generator().manual_seed(7)
        self.texts: dict[int, list[int]] = {}  # committed tokens, then those that are known beyond them
        self.hidden: dict[int, Tensor] = {}  # [tokens of the text, DIM]
        self.features: dict[int, dict[int, Tensor]] = {}  # position -> what takes the place of its token's embedding

    def _parameters(self) -> Any:
        return WeightPlan(self.spec).fill(torch.float32, CPU, 0, lambda done, total: None)

    def _model(self) -> Any:
        return DRAFT_MODELS.get(self.spec.architecture)(self.spec.config, self._parameters(), CPU)

    def random_tokens(self, count: int) -> list[int]:
        return torch.randint(0, VOCAB_SIZE, (count,), generator=self.generator).tolist()

    def random_hidden(self, count: int) -> Tensor:
        return torch.randn(count, DIM, generator=self.generator)

    def start(self, slot: int, prompt: list[int], params: SamplingParams = GREEDY) -> None:
        """A request enters the slot; its prompt is known, nothing is computed."""
        self.texts[slot], self.hidden[slot], self.features[slot] = prompt, self.random_hidden(len(prompt)), {}
        self.state.committed_len_cpu[slot] = 0
        for sampler in self.samplers:
            sampler.add(slot, params, prompt, len(prompt))
        self.speculator.add(slot, prompt)

    def release(self, slot: int) -> None:
        self.speculator.release(slot)
        for sampler in self.samplers:
            sampler.release(slot)

    def lengthen(self, slot: int, tokens: Sequence[int]) -> None:
        """The target has generated these tokens; the last of them is the bonus token."""
        self.texts[slot] = self.texts[slot] + list(tokens)
        self.hidden[slot] = torch.cat((self.hidden[slot], self.random_hidden(len(tokens))))
        for sampler in self.samplers:
            for token in tokens:
                sampler.record([slot], torch.tensor([token]))

    def extend(self, decode: Sequence[int] = (), chunks: Sequence[tuple[int, int]] = ()) -> None:
        """Decode slots up to their bonus token, then chunks (slot, end of the chunk)."""
        ends = [(slot, len(self.texts[slot]) - 1) for slot in decode] + list(chunks)
        starts = [self.state.committed_len_cpu[slot] for slot, _ in ends]
        spans = [(slot, start, end) for (slot, end), start in zip(ends, starts, strict=True)]
        positions = [(slot, position) for slot, start, end in spans for position in range(start, end)]
        replaced = [
            (row, self.features[slot][position + 1])
            for row, (slot, position) in enumerate(positions)
            if position + 1 in self.features[slot]
        ]
        images = None
        if replaced:
            features = torch.stack([feature for _, feature in replaced])
            images = ImageRows(torch.tensor([row for row, _ in replaced]), features)
        self.speculator.extend(
            Committed(
                slots=tuple(slot for slot, _, _ in spans),
                starts=tuple(starts),
                num_rows=tuple(end - start for _, start, end in spans),
                num_decode=len(decode),
                successors=torch.tensor([self.texts[slot][position + 1] for slot, position in positions]),
                images=images,
                hidden=torch.stack([self.hidden[slot][position] for slot, position in positions]),
            )
        )
        for slot, end in ends:
            self.state.committed_len_cpu[slot] = end
            self.state.bonus[slot] = self.texts[slot][end]

    def prefill(self, slot: int, length: int, params: SamplingParams = GREEDY) -> None:
        """A request whose whole prompt is computed in one chunk, with the first token after it."""
        self.start(slot, self.random_tokens(length), params)
        self.lengthen(slot, self.random_tokens(1))
        self.extend(chunks=[(slot, length)])

    def expected_logits(self, slot: int, path: Sequence[int] = ()) -> Tensor:
        """[1, vocab]: what the draft predicts after the slot's bonus token and the drafts `path`.

        Recomputed for every draft by another copy of the model: the whole text in one causal pass over an empty cache.
        """
        num_committed = self.state.committed_len_cpu[slot]
        known = self.target.embed(torch.tensor(self.texts[slot][1 : num_committed + 1]))
        for position, feature in self.features[slot].items():
            known[position - 1] = feature
        drafted = self.target.embed(torch.tensor(list(path), dtype=torch.int64))
        hidden = self.hidden[slot][:num_committed]
        for step in range(len(path) + 1):
            out = self._whole(torch.cat((known, drafted[:step])), hidden)
            hidden = torch.cat((hidden, out.feedback_hidden[-1:]))
        return self.target.compute_logits(out.logits_hidden[-1:])

    def expected_scores(self, slot: int, path: Sequence[int] = ()) -> Tensor:
        """[1, vocab]: the logits processed, with the noise of the token that is to be drawn."""
        position = self.state.committed_len_cpu[slot] + 1 + len(path)
        return self.samplers[1].scores(self.expected_logits(slot, path), [slot], [position], path_of(path))

    def _whole(self, x: Tensor, hidden: Tensor) -> Any:
        length = len(x)
        num_pages = -(-length // 4)
        attention = TorchNativeAttention(self.layers, allocate_caches(self.layers, num_pages, 4, torch.float32, CPU))
        attention.plan(
            Layout(
                num_decode=0,
                num_rows=(length,),
                kv_lens=torch.tensor([length]),
                kv_lens_cpu=(length,),
                page_tables=torch.arange(num_pages, dtype=torch.int32)[None],
                kv_rows=torch.arange(length),
            )
        )
        return self.model.forward(x, hidden, torch.arange(length), attention)


def path_of(path: Sequence[int]) -> Paths | None:
    """Of one row that lies below the drafts `path`."""
    return Paths.whole(torch.tensor([list(path)])) if path else None


def node_paths(candidates: Candidates, row: int) -> list[tuple[int, ...]]:
    """The path of every draft of one slot, in the order of the nodes."""
    paths: list[tuple[int, ...]] = [()]
    for node in range(candidates.num_drafts[row]):
        parent = int(candidates.parents[row, node])
        assert parent <= node, "parents come before their children"
        paths.append((*paths[parent], int(candidates.token_ids[row, node])))
    return paths[1:]
