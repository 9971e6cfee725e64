"""From options to resolved configurations: look at the checkpoint and at the machine, load nothing."""

import dataclasses
import os
import secrets

from slipstream.config.flags import check_fields
from slipstream.config.machine import probe_machine
from slipstream.config.options import LaunchOptions
from slipstream.config.resolve import Resolved, resolve
from slipstream.errors import ConfigError
from slipstream.hf_transformers.inspect import inspect_checkpoint
from slipstream.hf_transformers.spec import ModelSpec

API_KEY_VARIABLE = "SLIPSTREAM_API_KEY"


def prepare(options: LaunchOptions) -> tuple[ModelSpec, Resolved]:
    """Inspect the checkpoint (headers only) and resolve every option. Raises CheckpointError or ConfigError."""
    if options.api_key is None and (key := os.environ.get(API_KEY_VARIABLE)) is not None:
        if not key:
            raise ConfigError(f"{API_KEY_VARIABLE} is set but empty; unset it to serve without a key")
        options = dataclasses.replace(options, api_key=key)
    check_fields(options)
    spec = inspect_checkpoint(options.model_path, options.load_format, options.tokenizer_path)
    return spec, resolve(options, spec, probe_machine(), system_seed=secrets.randbits(31))
