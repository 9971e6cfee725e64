"""What the programs of a step share."""

from dataclasses import dataclass

import torch

from slipstream.attention.base import DeviceAttention
from slipstream.kernels.slot_tables import SlotTables
from slipstream.models.base import CausalLM
from slipstream.speculative.device_chain import DeviceChain
from slipstream.worker.device_state import DeviceState


@dataclass(frozen=True)
class DeviceParts:
    """See Worker, whose parts these are."""

    model: CausalLM
    attention: DeviceAttention
    state: DeviceState
    tables: SlotTables  # how each slot draws
    chain: DeviceChain | None  # None: nothing is drafted
    simulated_length: float | None  # mean acceptance length to pretend
    max_kv_len: int

    @property
    def device(self) -> torch.device:
        return self.state.bonus.device
