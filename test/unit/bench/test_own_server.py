"""A server of our own: its flags say what the options say, and a failed start is an error."""

import dataclasses
from pathlib import Path

import pytest

from slipstream.bench.own_server import OwnServer, to_flags
from slipstream.cli.serve import make_parser
from slipstream.config.flags import from_namespace
from slipstream.config.options import LaunchOptions
from slipstream.errors import WorkerDied

SOME = LaunchOptions(
    model_path="/a folder", dtype="float32", port=0, disable_radix_cache=True, max_running_requests=7,
    mem_fraction_static=0.5, drain_timeout_s=1.5,
)  # fmt: skip


@pytest.mark.parametrize("options", [LaunchOptions(), SOME])
def test_flags_give_the_same_options(options: LaunchOptions) -> None:
    assert from_namespace(LaunchOptions, make_parser().parse_args(to_flags(options))) == options


def test_the_key_is_on_no_command_line() -> None:
    assert "secret" not in " ".join(to_flags(dataclasses.replace(SOME, api_key="secret")))


def test_a_server_that_does_not_start(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkerDied, match="did not start"), OwnServer(LaunchOptions(model_path=str(tmp_path), port=0)):
        pass
    assert "params.json" in capfd.readouterr().err
