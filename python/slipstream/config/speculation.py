"""What the speculation flags come to: who drafts, how many drafts, how they are accepted. Refuses what nobody reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from slipstream.config.algorithms import (
    ALGORITHMS,
    FIELDS,
    NO_DRAFTS,
    OF_NGRAM,
    REJECTION,
    WITH_DRAFT,
    Algorithm,
    read_algorithm,
)
from slipstream.config.chooser import Chooser
from slipstream.config.drafting import MAX_DRAFTS, DraftShape
from slipstream.config.flags import AUTO, flag_name
from slipstream.config.options import LaunchOptions
from slipstream.config.processes import SchedulerDrafts, WorkerDrafts
from slipstream.errors import ConfigError

TREE_STEPS, TREE_DRAFTS = 5, 7
NGRAM_MIN, NGRAM_MAX = 2, 5


class DraftFacts(Protocol):
    """What resolving needs to know about the draft; a DrafterSpec has it."""

    @property
    def path(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def successor_depth(self) -> int: ...
    @property
    def kv_role(self) -> str: ...


@dataclass(frozen=True)
class Drafts:
    """The same choice, as each process needs it."""

    scheduler: SchedulerDrafts
    worker: WorkerDrafts


@dataclass(frozen=True)
class _Choice:
    """What the flags alone say."""

    algorithm: Algorithm
    shape: DraftShape
    adaptive: bool
    rejection_sampling: bool
    simulated_length: float | None
    simulated_pattern: tuple[int, ...]
    ngram: tuple[int, int]  # shortest and longest run that is looked up


def wants_draft(options: LaunchOptions) -> bool:
    """Whether a draft would be used if there is one."""
    name = read_algorithm(options.speculative_algorithm)
    return name == AUTO or (name != NO_DRAFTS and ALGORITHMS[name].needs_draft)


def check_speculation(options: LaunchOptions, *, has_draft: bool) -> None:
    """Raise ConfigError for speculation flags that do not go together, before any file is looked at or fetched."""
    _choose(Chooser(options), options, has_draft)


def resolve_drafts(
    chooser: Chooser, options: LaunchOptions, draft: DraftFacts | None, *, dtype: str, max_steps_in_flight: int
) -> Drafts | None:
    """How to speculate, None for not at all; each flag gets its reason. `dtype` is the target's."""
    choice = _choose(chooser, options, draft is not None)
    if choice is None:
        return None
    path: str | None = None
    load_format: str = AUTO
    if not choice.algorithm.needs_draft:
        draft = None
    elif draft is not None:
        path, load_format = _draft_files(chooser, options, draft)
        dtype = chooser.choose("speculative_draft_dtype", lambda: (dtype, "the target's"))
    return Drafts(
        SchedulerDrafts(
            shape=choice.shape,
            adaptive=choice.adaptive,
            successor_depth=draft.successor_depth if draft else 0,
            has_kv=draft is not None and draft.kv_role == "own",
        ),
        WorkerDrafts(
            algorithm=choice.algorithm.name,
            shape=choice.shape,
            max_steps_in_flight=max_steps_in_flight,
            model_path=path,
            load_format=load_format,
            dtype=dtype,
            adaptive=choice.adaptive,
            rejection_sampling=choice.rejection_sampling,
            simulated_length=choice.simulated_length,
            simulated_pattern=choice.simulated_pattern,
            ngram_min=choice.ngram[0],
            ngram_max=choice.ngram[1],
        ),
    )


def draft_load_format(options: LaunchOptions) -> str:
    """As given; else random weights are a wish for target and draft, while a layout is the target's."""
    given = options.speculative_draft_load_format
    return "dummy" if given == AUTO and options.load_format == "dummy" else given


def _draft_files(chooser: Chooser, options: LaunchOptions, draft: DraftFacts) -> tuple[str, str]:
    """The folder, and what to load from it."""
    named = options.speculative_draft_model_path is not None
    reason = "as given" if named else "the draft that ships with Slipstream"
    chooser.reasons["speculative_draft_model_path"] = (draft.path, reason)
    chooser.choose("speculative_draft_model_revision")
    load_format = draft_load_format(options)
    chooser.choose(
        "speculative_draft_load_format",
        lambda: (
            ("dummy", "as --load-format")
            if load_format == "dummy"
            else (draft.layout, f"the draft's folder has the {draft.layout} layout")
        ),
    )
    return draft.path, load_format if load_format == "dummy" else draft.layout


def _choose(chooser: Chooser, options: LaunchOptions, has_draft: bool) -> _Choice | None:
    algorithm = _algorithm(chooser, options, has_draft)
    _refuse_unread(chooser, options, algorithm)
    if algorithm is None:
        return None
    pick = chooser.choose
    shape = _shape(chooser, options, algorithm)
    length = pick("simulate_acceptance_length")
    pattern = _pattern(pick("simulate_acceptance_pattern"))
    is_simulated = length is not None or pattern != ()
    _check_simulation(length, pattern, shape.depth)
    rejection = REJECTION in algorithm.fields and pick(REJECTION)
    if rejection:
        _check_rejection(shape, is_simulated=is_simulated)
    adaptive = pick(
        "speculative_adaptive",
        lambda: (
            ("off", "acceptance is simulated: K stays as it is")
            if is_simulated
            else ("on", "K follows load and acceptance")
        ),
    )
    ngram = _ngram_sizes(chooser, options) if OF_NGRAM[0] in algorithm.fields else (NGRAM_MIN, NGRAM_MAX)
    return _Choice(algorithm, shape, adaptive == "on", rejection, length, pattern, ngram)


def _algorithm(chooser: Chooser, options: LaunchOptions, has_draft: bool) -> Algorithm | None:
    name, reason = read_algorithm(options.speculative_algorithm), "as given"
    if name == AUTO:
        name, reason = (WITH_DRAFT, "there is a draft") if has_draft else (NO_DRAFTS, "there is no draft")
    chooser.reasons["speculative_algorithm"] = (name, reason)
    if name == NO_DRAFTS:
        return None
    if ALGORITHMS[name].needs_draft and not has_draft:
        raise ConfigError(f"--speculative-algorithm {name} needs a draft; name it with --speculative-draft-model-path")
    return ALGORITHMS[name]


def _refuse_unread(chooser: Chooser, options: LaunchOptions, algorithm: Algorithm | None) -> None:
    """No flag is taken and ignored."""
    unread = [field for field in FIELDS if algorithm is None or field not in algorithm.fields]
    fields = type(options).__dataclass_fields__
    given = [flag_name(field) for field in unread if getattr(options, field) != fields[field].default]
    if given:
        verb = "is" if len(given) == 1 else "are"
        if algorithm is not None:
            why = f"--speculative-algorithm {algorithm.name} does not read {'it' if len(given) == 1 else 'them'}"
        elif read_algorithm(options.speculative_algorithm) == NO_DRAFTS:
            why = "--speculative-algorithm none serves without drafts"
        else:
            why = "there are no drafts; name a draft with --speculative-draft-model-path, or use NGRAM"
        raise ConfigError(f"{' and '.join(given)} {verb} given, but {why}")
    reason = "there are no drafts" if algorithm is None else f"{algorithm.name} does not read it"
    for field in unread:
        chooser.reasons[field] = (None, reason)


def _shape(chooser: Chooser, options: LaunchOptions, algorithm: Algorithm) -> DraftShape:
    """Steps, branches and rows; of steps and rows the one that is missing follows from the other."""
    pick, rows = chooser.choose, options.speculative_num_draft_tokens
    topk: int = pick("speculative_eagle_topk", lambda: (1, "drafts form a chain"))
    if algorithm.chains_only and topk != 1:
        raise ConfigError(
            f"--speculative-eagle-topk is {topk}, but drafts of {algorithm.name} are one chain; leave it out"
        )
    usual = algorithm.chain_steps if topk == 1 else TREE_STEPS

    def steps_from_rows() -> tuple[int, str]:
        if rows == AUTO:
            return usual, f"usual for {algorithm.name}" if topk == 1 else "usual for a tree"
        if topk == 1:
            return rows - 1, "the rows but the bonus token"
        return (usual, "usual for a tree") if usual < rows else (rows - 1, "what the rows hold")

    steps: int = pick("speculative_num_steps", steps_from_rows)
    possible = min(topk + (steps - 1) * topk**2, MAX_DRAFTS)
    num_rows: int = pick(
        "speculative_num_draft_tokens",
        lambda: (steps + 1, "the steps and the bonus token") if topk == 1 else _tree_rows(steps, possible),
    )
    if topk == 1 and num_rows != steps + 1:
        raise ConfigError(
            f"--speculative-num-draft-tokens is {num_rows} and --speculative-num-steps {steps}: a chain verifies one "
            "row more than it has steps; leave one of them out"
        )
    if not steps < num_rows <= possible + 1:
        raise ConfigError(
            f"--speculative-num-draft-tokens is {num_rows}; with --speculative-num-steps {steps} and "
            f"--speculative-eagle-topk {topk} it must be from {steps + 1}, one path, to {possible + 1}"
        )
    return DraftShape(depth=steps, topk=topk, num_nodes=num_rows - 1)


def _tree_rows(steps: int, possible: int) -> tuple[int, str]:
    """Rows of a tree where nothing is given, and why.

    >>> _tree_rows(5, 68), _tree_rows(9, 20), _tree_rows(2, 6)
    ((8, 'usual for a tree'), (10, 'one path and the bonus token'), (7, 'the whole tree and the bonus token'))
    """
    if possible < TREE_DRAFTS:
        return possible + 1, "the whole tree and the bonus token"
    return (steps + 1, "one path and the bonus token") if steps > TREE_DRAFTS else (TREE_DRAFTS + 1, "usual for a tree")


def _pattern(text: str | None) -> tuple[int, ...]:
    """
    >>> _pattern("0, 3,1"), _pattern(None)
    ((0, 3, 1), ())
    """
    entries = [] if text is None else [entry.strip() for entry in text.split(",")]
    if not all(entry.isascii() and entry.isdigit() and len(entry) < 9 for entry in entries):
        raise ConfigError(f"--simulate-acceptance-pattern is {text!r}; it must be numbers of drafts, like 0,3,1")
    return tuple(int(entry) for entry in entries)


def _check_simulation(length: float | None, pattern: Sequence[int], depth: int) -> None:
    if length is not None and pattern:
        raise ConfigError(
            "--simulate-acceptance-length and --simulate-acceptance-pattern are given, but only one can hold"
        )
    if length is not None and length > depth + 1:
        raise ConfigError(
            f"--simulate-acceptance-length is {length:g}; with --speculative-num-steps {depth} a step gives at most "
            f"{depth + 1} tokens"
        )
    if max(pattern, default=0) > depth:
        raise ConfigError(f"--simulate-acceptance-pattern has a {max(pattern)}, but --speculative-num-steps is {depth}")


def _check_rejection(shape: DraftShape, *, is_simulated: bool) -> None:
    if not shape.is_chain:
        raise ConfigError(
            f"--speculative-use-rejection-sampling is for chains, and --speculative-eagle-topk is {shape.topk}; "
            "leave one of them out"
        )
    if is_simulated:
        raise ConfigError(
            "--speculative-use-rejection-sampling is given, but acceptance is simulated, which asks no draft; "
            "leave one of them out"
        )


def _ngram_sizes(chooser: Chooser, options: LaunchOptions) -> tuple[int, int]:
    """Shortest and longest run; where only one is given, the other makes room for it."""
    shortest_field, longest_field = OF_NGRAM
    given = options.speculative_ngram_max_match_window_size
    shortest: int = chooser.choose(
        shortest_field,
        lambda: (
            (NGRAM_MIN, "usual")
            if given == AUTO or given >= NGRAM_MIN
            else (given, f"no more than {flag_name(longest_field)}")
        ),
    )
    longest: int = chooser.choose(
        longest_field,
        lambda: (
            (NGRAM_MAX, "usual") if shortest <= NGRAM_MAX else (shortest, f"no less than {flag_name(shortest_field)}")
        ),
    )
    if shortest > longest:
        raise ConfigError(
            f"{flag_name(shortest_field)} is {shortest}, more than {flag_name(longest_field)}, which is {longest}"
        )
    return shortest, longest
