"""A child reads its own configuration from the first line of stdin."""

import dataclasses

import msgspec
import pytest

from slipstream.config.machine import probe_machine
from slipstream.config.options import LaunchOptions
from slipstream.config.processes import Endpoints
from slipstream.config.resolve import resolve
from slipstream.hf_transformers.embedded import embedded_path
from slipstream.hf_transformers.inspect import inspect_checkpoint
from slipstream.launch.child import ChildSetup, decode_setup


@pytest.mark.parametrize("role", ["tokenizer", "scheduler", "worker"])
def test_the_setup_survives_the_way_to_the_child(role: str) -> None:
    resolved = resolve(LaunchOptions(), inspect_checkpoint(str(embedded_path())), probe_machine(), system_seed=1)
    config = getattr(resolved, role)
    endpoints = Endpoints("a", "b", "c", "d")
    line = msgspec.json.encode(ChildSetup(endpoints, config)) + b"\n"
    assert decode_setup(role, line) == (endpoints, config)


def test_a_setup_of_another_role_is_refused() -> None:
    resolved = resolve(LaunchOptions(), inspect_checkpoint(str(embedded_path())), probe_machine(), system_seed=1)
    line = msgspec.json.encode(ChildSetup(Endpoints("a", "b", "c", "d"), resolved.scheduler))
    with pytest.raises(msgspec.ValidationError):
        decode_setup("worker", line)
    assert dataclasses.is_dataclass(resolved.scheduler)
