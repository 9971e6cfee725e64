"""What the speculation flags come to, and which of them do not go together."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest

from slipstream.bench.own_server import to_flags
from slipstream.config import algorithms
from slipstream.config.algorithms import ALGORITHMS
from slipstream.config.drafting import DraftShape
from slipstream.config.flags import FlagParser, add_flags, flag_name, from_namespace
from slipstream.config.machine import Machine
from slipstream.config.options import LaunchOptions
from slipstream.config.resolve import Resolved, resolve
from slipstream.config.speculation import check_speculation
from slipstream.errors import ConfigError
from slipstream.speculative.registry import SPECULATORS
from support.model_facts import Model


@dataclass(frozen=True)
class Draft:
    path: str = "/models/draft"
    layout: str = "mistral"
    successor_depth: int = 1
    kv_role: str = "own"


MACHINE = Machine(has_cuda=False, has_bf16_instructions=False, num_cores=2, memory_bytes=2**33)
FIELDS = [name for name in LaunchOptions.__dataclass_fields__ if name.startswith(("speculative_", "simulate_"))]
NAMED = {"speculative_draft_model_path": "d"}
NGRAM = {"speculative_algorithm": "NGRAM"}
ANY_VALUE: dict[str, Any] = {  # none of them the default
    "speculative_draft_model_path": "d", "speculative_draft_model_revision": "v2",
    "speculative_draft_load_format": "dummy", "speculative_draft_dtype": "float16",
    "speculative_num_steps": 2, "speculative_eagle_topk": 1,
    "speculative_num_draft_tokens": 4, "speculative_adaptive": "on", "speculative_use_rejection_sampling": True,
    "speculative_ngram_min_match_window_size": 2, "speculative_ngram_max_match_window_size": 5,
    "simulate_acceptance_length": 2.0, "simulate_acceptance_pattern": "1",
}  # fmt: skip


def resolved(draft: Draft | None = Draft(), **options: Any) -> Resolved:
    return resolve(LaunchOptions(**options), Model(), MACHINE, 5, draft=draft)


def shape(**options: Any) -> DraftShape:
    """Without the prefix, as SGLang's users type them: steps, topk, tokens."""
    names = {"steps": "num_steps", "topk": "eagle_topk", "tokens": "num_draft_tokens"}
    found = resolved(**NAMED, **{f"speculative_{names[key]}": value for key, value in options.items()})
    assert found.worker.drafts is not None and found.scheduler.drafts is not None
    assert found.worker.drafts.shape == found.scheduler.drafts.shape
    return found.worker.drafts.shape


def test_the_path_of_a_draft_is_enough() -> None:
    found = resolved(**NAMED)
    worker, scheduler = found.worker.drafts, found.scheduler.drafts
    assert worker is not None and scheduler is not None
    assert (worker.algorithm, worker.model_path, worker.load_format) == ("EAGLE", "/models/draft", "mistral")
    assert worker.shape == scheduler.shape == DraftShape(depth=3, topk=1, num_nodes=3)
    assert (scheduler.adaptive, scheduler.successor_depth, scheduler.has_kv) == (True, 1, True)
    assert worker.max_steps_in_flight == found.scheduler.max_steps_in_flight == 2
    assert (worker.rejection_sampling, worker.simulated_length, worker.simulated_pattern) == (False, None, ())
    shown = {name: value for name, (value, _) in found.reasons.items()}
    assert (shown["speculative_algorithm"], shown["speculative_num_steps"]) == ("EAGLE", 3)
    assert (shown["speculative_eagle_topk"], shown["speculative_num_draft_tokens"]) == (1, 4)
    assert (shown["speculative_adaptive"], shown["speculative_draft_model_path"]) == ("on", "/models/draft")


@pytest.mark.parametrize(
    ("draft", "options"),
    [(Draft(), NAMED), (None, {}), (None, NGRAM), (Draft(), {}), (None, {"speculative_algorithm": "none"})],
)
def test_every_flag_has_a_reason(draft: Draft | None, options: dict[str, Any]) -> None:
    found = resolved(draft, **options)
    assert set(found.reasons) == set(LaunchOptions.__dataclass_fields__)
    assert all(reason for _, reason in found.reasons.values())


def test_without_a_draft_nothing_drafts() -> None:
    found = resolved(None)
    assert (found.worker.drafts, found.scheduler.drafts) == (None, None)
    assert found.reasons["speculative_algorithm"] == ("none", "there is no draft")


def test_what_the_draft_needs_reaches_the_scheduler() -> None:
    drafts = resolved(Draft(successor_depth=2, kv_role="target"), **NAMED).scheduler.drafts
    assert drafts is not None and (drafts.successor_depth, drafts.has_kv) == (2, False)


def test_ngram_needs_no_draft() -> None:
    found = resolved(None, **NGRAM, disable_overlap_schedule=True)
    worker, scheduler = found.worker.drafts, found.scheduler.drafts
    assert worker is not None and scheduler is not None
    assert (worker.algorithm, worker.model_path, worker.max_steps_in_flight) == ("NGRAM", None, 1)
    assert worker.shape == DraftShape(depth=5, topk=1, num_nodes=5)
    assert (worker.ngram_min, worker.ngram_max) == (2, 5)
    assert (scheduler.successor_depth, scheduler.has_kv, scheduler.adaptive) == (0, False, True)


@pytest.mark.parametrize(
    ("sizes", "found"), [((None, None), (2, 5)), ((8, None), (8, 8)), ((None, 1), (1, 1)), ((3, 4), (3, 4))]
)
def test_sizes_of_ngrams_make_room_for_each_other(sizes: tuple[int | None, int | None], found: tuple[int, int]) -> None:
    names = ("speculative_ngram_min_match_window_size", "speculative_ngram_max_match_window_size")
    given = {name: size for name, size in zip(names, sizes, strict=True) if size is not None}
    drafts = resolved(None, **NGRAM, **given).worker.drafts
    assert drafts is not None and (drafts.ngram_min, drafts.ngram_max) == found


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"steps": 5}, (5, 1, 5)),
        ({"tokens": 4}, (3, 1, 3)),
        ({"steps": 1, "topk": 1, "tokens": 2}, (1, 1, 1)),
        ({"steps": 63}, (63, 1, 63)),
        ({"topk": 4}, (5, 4, 7)),  # SGLang's 5, 4, 8
        ({"topk": 4, "steps": 1}, (1, 4, 4)),
        ({"topk": 2, "steps": 10}, (10, 2, 10)),
        ({"topk": 8, "steps": 5, "tokens": 64}, (5, 8, 63)),
        ({"topk": 4, "tokens": 4}, (3, 4, 3)),
    ],
)
def test_sizes_follow_from_each_other(given: dict[str, int], wanted: tuple[int, int, int]) -> None:
    assert shape(**given) == DraftShape(*wanted)


@pytest.mark.parametrize("topk", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_exactly_the_trees_that_can_be_built_are_taken(topk: int, steps: int) -> None:
    # every level but the first expands topk nodes of the one before into topk candidates each
    levels = [topk, *[topk * topk] * (steps - 1)]
    for tokens in range(2, 65):
        if steps <= tokens - 1 <= sum(levels):  # room for one path, and no more nodes than there are
            found = shape(topk=topk, steps=steps, tokens=tokens)
            assert found.nodes(steps) == found.num_nodes == tokens - 1
        else:
            with pytest.raises(ConfigError, match=f"--speculative-num-draft-tokens is {tokens}.*{steps}"):
                shape(topk=topk, steps=steps, tokens=tokens)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (NAMED | {"speculative_num_steps": 3, "speculative_num_draft_tokens": 8}, ["is 8", "num-steps 3", "leave one"]),
        (NAMED | {"speculative_num_draft_tokens": 65}, ["is 65", "at most 64"]),
        (NAMED | {"simulate_acceptance_length": 4.5}, ["is 4.5", "--speculative-num-steps 3", "at most 4"]),
        (NAMED | {"simulate_acceptance_length": 0.5}, ["is 0.5", "at least 1"]),
        (NAMED | {"simulate_acceptance_pattern": "0,4"}, ["has a 4", "num-steps is 3"]),
        (NAMED | {"simulate_acceptance_pattern": "0,x"}, ["'0,x'", "0,3,1"]),
        (NAMED | {"simulate_acceptance_pattern": "1,"}, ["'1,'"]),
        (NAMED | {"simulate_acceptance_pattern": "1", "simulate_acceptance_length": 2.0}, ["only one"]),
        (NAMED | {"speculative_use_rejection_sampling": True, "speculative_eagle_topk": 2}, ["chains", "topk is 2"]),
        (NAMED | {"speculative_use_rejection_sampling": True, "simulate_acceptance_length": 2.0}, ["simulated"]),
        (NGRAM | {"speculative_eagle_topk": 4}, ["--speculative-eagle-topk is 4", "NGRAM"]),
        (NGRAM | {"speculative_ngram_min_match_window_size": 6, "speculative_ngram_max_match_window_size": 5},
         ["min-match-window-size is 6", "max-match-window-size, which is 5"]),
        ({"speculative_algorithm": "EAGLE3"}, ["'EAGLE3'", "EAGLE-3 drafts are not supported", "NGRAM"]),
        ({"speculative_algorithm": "nextn"}, ["'nextn'", "multi-token prediction"]),
        ({"speculative_algorithm": "eagel"}, ["'eagel'", "auto, none, EAGLE, NGRAM"]),
        ({"speculative_adaptive": "maybe"}, ["'maybe'", "on, off"]),
    ],
)  # fmt: skip
def test_what_cannot_go_together_is_named(options: dict[str, Any], words: list[str]) -> None:
    draft = Draft() if "speculative_draft_model_path" in options else None
    with pytest.raises(ConfigError) as caught:
        resolved(draft, **options)
    assert all(word in str(caught.value) for word in words), caught.value


def test_eagle_without_a_draft_says_how_to_name_one() -> None:
    with pytest.raises(ConfigError, match=r"EAGLE needs a draft; .*--speculative-draft-model-path"):
        check_speculation(LaunchOptions(speculative_algorithm="eagle"), has_draft=False)


def test_every_value_below_is_for_some_flag() -> None:
    assert set(ANY_VALUE) == set(FIELDS) - {"speculative_algorithm"}


@pytest.mark.parametrize("field", sorted(ANY_VALUE))
@pytest.mark.parametrize("algorithm", ["auto", "none", "NGRAM", "EAGLE"])
def test_a_flag_is_read_or_refused(field: str, algorithm: str) -> None:
    options = LaunchOptions(speculative_algorithm=algorithm, **{field: ANY_VALUE[field]})
    draft = None if algorithm == "auto" else Draft()
    ngram, eagle = "ngram" in field, "speculative_draft_" in field or "rejection" in field
    is_read = {"auto": False, "none": False, "NGRAM": not eagle, "EAGLE": not ngram}[algorithm]
    if not is_read:
        with pytest.raises(ConfigError, match=flag_name(field)):
            resolve(options, Model(), MACHINE, 5, draft=draft)
        return
    plain = resolve(LaunchOptions(speculative_algorithm=algorithm), Model(), MACHINE, 5, draft=draft)
    given = resolve(options, Model(), MACHINE, 5, draft=draft)
    assert given.reasons[field] == (draft.path if "path" in field and draft else ANY_VALUE[field], "as given")
    usual = {"speculative_adaptive", "speculative_eagle_topk", "speculative_num_draft_tokens"} | {
        "speculative_ngram_min_match_window_size", "speculative_ngram_max_match_window_size",
        "speculative_draft_model_path", "speculative_draft_model_revision"}  # fmt: skip
    assert field in usual or given.worker.drafts != plain.worker.drafts


def test_all_refused_flags_are_named_at_once() -> None:
    options = LaunchOptions(speculative_algorithm="none", speculative_num_steps=2, simulate_acceptance_length=2.0)
    with pytest.raises(ConfigError, match=r"--speculative-num-steps and --simulate-acceptance-length are given"):
        check_speculation(options, has_draft=True)


def test_simulated_acceptance_fixes_k_unless_told_otherwise() -> None:
    found = resolved(**NAMED, simulate_acceptance_length=2.5)
    assert found.scheduler.drafts is not None and not found.scheduler.drafts.adaptive
    assert found.reasons["speculative_adaptive"] == ("off", "acceptance is simulated: K stays as it is")
    found = resolved(**NAMED, simulate_acceptance_pattern="0, 3,1", speculative_adaptive="on")
    assert found.scheduler.drafts is not None and found.scheduler.drafts.adaptive
    assert found.worker.drafts is not None and found.worker.drafts.simulated_pattern == (0, 3, 1)


def test_random_weights_are_a_wish_for_both() -> None:
    drafts = resolved(**NAMED, load_format="dummy").worker.drafts
    assert drafts is not None and drafts.load_format == "dummy"
    drafts = resolved(**NAMED, load_format="dummy", speculative_draft_load_format="mistral").worker.drafts
    assert drafts is not None and drafts.load_format == "mistral"
    drafts = resolved(**NAMED, load_format="hf").worker.drafts
    assert drafts is not None and drafts.load_format == "mistral", "the target's layout is its own"


def test_the_draft_has_the_dtype_of_its_target_unless_told_otherwise() -> None:
    for options, wanted in (
        ({}, "float32"),  # what this CPU is fast with
        ({"dtype": "float16"}, "float16"),
        ({"dtype": "bfloat16", "speculative_draft_dtype": "float32"}, "float32"),
    ):
        found = resolved(**NAMED, **options)
        assert found.worker.drafts is not None and found.worker.drafts.dtype == wanted
        assert found.worker.dtype == options.get("dtype", "float32")
    assert resolved(**NAMED).reasons["speculative_draft_dtype"] == ("float32", "the target's")


def test_there_is_a_speculator_for_every_algorithm() -> None:
    assert sorted(ALGORITHMS) == sorted(SPECULATORS.names())
    assert all(name == algorithm.name for name, algorithm in ALGORITHMS.items())
    assert {*algorithms.FIELDS, "speculative_algorithm"} == set(FIELDS), "every flag is read by some algorithm"


def parse(*args: str) -> LaunchOptions:
    parser = FlagParser()
    add_flags(parser, LaunchOptions)
    return from_namespace(LaunchOptions, parser.parse_args(list(args)))


def test_names_that_users_of_sglang_type() -> None:
    sizes = ("--speculative-num-steps", "3", "--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", "4")
    options = parse("--speculative-algorithm", "eagle", "--speculative-draft-model", "d", *sizes)
    assert options == LaunchOptions(
        speculative_algorithm="EAGLE", speculative_draft_model_path="d", speculative_num_steps=3,
        speculative_eagle_topk=1, speculative_num_draft_tokens=4,
    )  # fmt: skip
    assert parse("--speculative-draft-model-path=d").speculative_draft_model_path == "d"


def test_adaptive_means_on_where_it_has_no_value() -> None:
    assert parse("--speculative-adaptive", "--port", "1").speculative_adaptive == "on"
    assert parse("--speculative-adaptive").speculative_adaptive == "on"
    assert parse("--speculative-adaptive", "off").speculative_adaptive == "off"
    assert parse().speculative_adaptive == "auto"


def test_an_algorithm_of_others_is_refused_at_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--speculative-algorithm", "Standalone")
    message = capsys.readouterr().err
    assert "--speculative-algorithm: 'Standalone': whole models as drafts are not supported" in message


def test_the_flags_survive_the_way_to_a_server_of_a_benchmark() -> None:
    options = LaunchOptions(speculative_algorithm="NGRAM", simulate_acceptance_pattern="0,3", speculative_adaptive="on")
    assert parse(*to_flags(options)) == options
    eagle = dataclasses.replace(
        LaunchOptions(), speculative_draft_model_path="d", speculative_use_rejection_sampling=True
    )
    assert parse(*to_flags(eagle)) == eagle


@pytest.mark.parametrize(
    ("given", "field", "wanted"),
    [
        ({"speculative_ngram_min_match_window_size": 6}, "speculative_ngram_max_match_window_size", (6, "min")),
        ({"speculative_ngram_min_match_window_size": 5}, "speculative_ngram_max_match_window_size", (5, "usual")),
        ({"speculative_ngram_max_match_window_size": 1}, "speculative_ngram_min_match_window_size", (1, "max")),
        ({"speculative_ngram_max_match_window_size": 9}, "speculative_ngram_min_match_window_size", (2, "usual")),
    ],
)
def test_a_lookup_size_that_gives_way_says_to_which(given: dict[str, int], field: str, wanted: tuple[int, str]) -> None:
    value, reason = resolved(speculative_algorithm="NGRAM", **given).reasons[field]
    flag = {"min": "--speculative-ngram-min-match", "max": "--speculative-ngram-max-match"}.get(wanted[1], wanted[1])
    assert value == wanted[0] and flag in reason


@pytest.mark.parametrize(
    ("given", "field", "wanted"),
    [
        ({}, "speculative_num_draft_tokens", (8, "usual for a tree")),
        ({"speculative_num_steps": 9}, "speculative_num_draft_tokens", (10, "one path and the bonus token")),
        ({"speculative_num_steps": 2}, "speculative_num_draft_tokens", (7, "the whole tree and the bonus token")),
        ({"speculative_num_draft_tokens": 12}, "speculative_num_steps", (5, "usual for a tree")),
        ({"speculative_num_draft_tokens": 4}, "speculative_num_steps", (3, "what the rows hold")),
    ],
)
def test_the_sizes_of_a_tree_have_their_reasons(given: dict[str, int], field: str, wanted: tuple[int, str]) -> None:
    assert resolved(**NAMED, speculative_eagle_topk=2, **given).reasons[field] == wanted
