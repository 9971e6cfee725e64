"""A look at the checkpoints to serve, from their headers: fetched where a repository is named, and held against what
their models need and against each other. `slipstream check` reports it, the launcher refuses by it.
"""

import dataclasses
from dataclasses import dataclass

from slipstream.config.options import LaunchOptions
from slipstream.config.speculation import draft_load_format, wants_draft
from slipstream.errors import CheckpointError
from slipstream.hf_transformers.embedded import embedded_draft_path, embedded_path
from slipstream.hf_transformers.hub import resolve_path
from slipstream.hf_transformers.inspect import examine
from slipstream.hf_transformers.spec import CheckpointSpec, DrafterSpec, ModelSpec
from slipstream.launch.pair import pair_problems, pair_warnings
from slipstream.models.match import Match


@dataclass(frozen=True)
class Look:
    """One checkpoint. No match where its files cannot be read as one: then there are problems."""

    path: str
    match: Match | None
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def spec(self) -> CheckpointSpec | None:
        return self.match.spec if self.match is not None else None


def draft_path(options: LaunchOptions) -> str | None:
    """Folder or repository of the draft: the one that is named, else the one that ships with the embedded model."""
    if options.speculative_draft_model_path is not None:
        return options.speculative_draft_model_path
    folder = embedded_draft_path() if options.model_path is None and wants_draft(options) else None
    return str(folder) if folder is not None else None


def look_at_target(options: LaunchOptions, *, needs_tokenizer: bool) -> Look:
    """Raises ConfigError for a revision without a repository."""
    try:
        path = resolve_path(options.model_path, options.revision, options.load_format, options.config_format)
    except CheckpointError as error:
        return Look(error.path, None, error.problems)
    spec, problems = examine(
        path,
        "target",
        options.load_format,
        options.tokenizer_path,
        config_format=options.config_format,
        needs_tokenizer=needs_tokenizer,
    )
    return _look(str(embedded_path()) if path is None else path, spec, problems)


def look_at_draft(path: str, options: LaunchOptions, target: CheckpointSpec | None) -> Look:
    """The draft, and what is wrong or odd about the pair as the draft's fault. Formats are never the target's."""
    load_format = draft_load_format(options)
    try:
        folder = resolve_path(path, options.speculative_draft_model_revision, load_format, role="draft")
    except CheckpointError as error:
        return Look(error.path, None, error.problems)
    spec, problems = examine(folder, "draft", load_format)
    look = _look(path if folder is None else folder, spec, problems)
    if not isinstance(target, ModelSpec) or not isinstance(spec, DrafterSpec):
        return look
    return dataclasses.replace(
        look,
        problems=(*look.problems, *pair_problems(target, spec)),
        warnings=(*look.warnings, *pair_warnings(target, spec)),
    )


def _look(path: str, spec: CheckpointSpec | None, problems: list[str]) -> Look:
    if spec is None:
        return Look(path, None, tuple(problems))
    match = Match.of(spec)
    return Look(path, match, (*problems, *match.problems()), spec.warnings)
