"""What a speculator is made of: the worker loads and allocates, the speculator uses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.attention.base import AttentionBackend
from slipstream.attention.layer import AttentionLayer
from slipstream.config.processes import WorkerDrafts
from slipstream.hf_transformers.spec import DrafterSpec
from slipstream.models.base import CausalLM
from slipstream.sampling.sampler import Sampler
from slipstream.speculative.base import SlotState
from slipstream.weights.parameters import Parameters


@dataclass(frozen=True)
class LoadedDraft:
    """A draft model before it is built."""

    spec: DrafterSpec
    parameters: Parameters  # filled; building the model takes them all
    layers: Sequence[AttentionLayer]
    backend: type[AttentionBackend]
    caches: Sequence[Tensor]  # [num_pages, page_size, *cache_shape] for each of its layers: the target's page ids


@dataclass(frozen=True)
class SpeculatorParts:
    """See BaseSpeculator; each speculator takes what it needs."""

    drafts: WorkerDrafts
    state: SlotState
    sampler: Sampler  # built for the same rule of acceptance as `drafts` asks for
    target: CausalLM
    num_slots: int
    vocab_size: int
    device: torch.device
    dtype: torch.dtype  # of the target's hidden states
    draft: LoadedDraft | None = None  # None: the algorithm needs no model
