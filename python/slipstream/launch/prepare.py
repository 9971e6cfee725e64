"""From options to resolved configurations: look at the checkpoints and at the machine, load nothing."""

import dataclasses
import os
import secrets
from dataclasses import dataclass

from slipstream.config.flags import check_fields
from slipstream.config.machine import probe_machine
from slipstream.config.options import LaunchOptions
from slipstream.config.resolve import Resolved, resolve
from slipstream.config.speculation import check_speculation
from slipstream.errors import CheckpointError, ConfigError
from slipstream.hf_transformers.spec import DrafterSpec, ModelSpec
from slipstream.launch.look import Look, draft_path, look_at_draft, look_at_target

API_KEY_VARIABLE = "SLIPSTREAM_API_KEY"


@dataclass(frozen=True)
class Prepared:
    """What is to be served, and how."""

    spec: ModelSpec
    resolved: Resolved
    draft: DrafterSpec | None  # None: none, or NGRAM, which has no model
    warnings: tuple[str, ...]  # of both checkpoints and of the pair, one sentence each


def prepare(options: LaunchOptions) -> Prepared:
    """Inspect target and draft (headers only), hold them against what they need, and resolve every option.

    A repository's name is fetched first. Raises CheckpointError or ConfigError.
    """
    if options.api_key is None and (key := os.environ.get(API_KEY_VARIABLE)) is not None:
        if not key:
            raise ConfigError(f"{API_KEY_VARIABLE} is set but empty; unset it to serve without a key")
        options = dataclasses.replace(options, api_key=key)
    check_fields(options)
    path = draft_path(options)
    check_speculation(options, has_draft=path is not None)
    target = look_at_target(options, needs_tokenizer=True)
    draft = look_at_draft(path, options, target.spec) if path is not None else None
    _refuse_problems(target, draft)
    spec, draft_spec = target.spec, draft.spec if draft else None
    assert isinstance(spec, ModelSpec) and (draft_spec is None or isinstance(draft_spec, DrafterSpec))
    resolved = resolve(options, spec, probe_machine(), system_seed=secrets.randbits(31), draft=draft_spec)
    drafts_warnings = [f"the draft: {warning}" for warning in draft.warnings] if draft else []
    return Prepared(spec, resolved, draft_spec, (*target.warnings, *drafts_warnings))


def _refuse_problems(target: Look, draft: Look | None) -> None:
    """Everything that is wrong, at once."""
    problems = draft.problems if draft else ()
    if draft and target.problems:
        problems = tuple(f"and of the draft, {draft.path}: {problem}" for problem in problems)
    if target.problems:
        raise CheckpointError(target.path, (*target.problems, *problems))
    if draft and problems:
        raise CheckpointError(draft.path, problems)
