"""From options to resolved configurations: look at the checkpoint and at the machine, load nothing."""

import dataclasses
import os
import secrets

from slipstream.config.machine import probe_machine
from slipstream.config.options import LaunchOptions
from slipstream.config.resolve import Resolved, resolve
from slipstream.hf_transformers.embedded import embedded_path
from slipstream.hf_transformers.inspect import inspect_checkpoint
from slipstream.hf_transformers.spec import ModelSpec

API_KEY_VARIABLE = "SLIPSTREAM_API_KEY"


def prepare(options: LaunchOptions) -> tuple[ModelSpec, Resolved]:
    """Inspect the checkpoint (headers only) and resolve every option. Raises CheckpointError or ConfigError."""
    if options.api_key is None and API_KEY_VARIABLE in os.environ:
        options = dataclasses.replace(options, api_key=os.environ[API_KEY_VARIABLE])
    path = options.model_path or str(embedded_path())
    spec = inspect_checkpoint(path, load_format=options.load_format, tokenizer_path=options.tokenizer_path)
    return spec, resolve(options, spec, probe_machine(), system_seed=secrets.randbits(31))
