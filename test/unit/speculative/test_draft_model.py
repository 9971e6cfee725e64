"""What the draft knows of a text does not depend on how the text came in."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from slipstream.config.drafting import DraftShape
from slipstream.errors import ConfigError
from slipstream.speculative.draft_model import require
from slipstream.speculative.eagle import EagleSpeculator
from slipstream.speculative.registry import SPECULATORS
from support.speculator_harness import DIM, SpeculatorHarness

Pairs = dict[str, tuple[Path, Path]]
SHAPE = DraftShape(depth=3, topk=1, num_nodes=3)
KINDS = ["GQA", "windows", "MLA", "MLA with experts"]


def kept_logits(harness: SpeculatorHarness, slot: int) -> torch.Tensor:
    return harness.target.compute_logits(harness.speculator.kept_of([slot]).logits_hidden)


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_beside_other_requests_equal_the_whole(pairs: Pairs, kind: str, page_size: int) -> None:
    harness = SpeculatorHarness(*pairs[kind], SHAPE, page_size)
    harness.prefill(0, 3)
    for slot, length in ((1, 40), (2, 17)):
        harness.start(slot, harness.random_tokens(length))
    harness.lengthen(0, harness.random_tokens(2))
    harness.extend(decode=[0], chunks=[(1, 19), (2, 6)])
    harness.lengthen(2, harness.random_tokens(1))
    harness.extend(chunks=[(1, 39), (2, 17)])
    harness.lengthen(1, harness.random_tokens(1))
    harness.lengthen(2, harness.random_tokens(3))
    harness.extend(decode=[2], chunks=[(1, 40)])
    for slot in range(3):
        torch.testing.assert_close(kept_logits(harness, slot), harness.expected_logits(slot), atol=1e-4, rtol=0)


def test_the_successor_of_a_chunks_end_matters(pairs: Pairs) -> None:
    """The reference would notice a wrong token there."""
    harness = SpeculatorHarness(*pairs["GQA"], SHAPE)
    harness.start(0, harness.random_tokens(12))
    harness.lengthen(0, [5])
    right = harness.texts[0][6]
    harness.texts[0][6] = (right + 1) % 97
    harness.extend(chunks=[(0, 6)])
    harness.texts[0][6] = right
    harness.extend(chunks=[(0, 12)])
    assert (kept_logits(harness, 0) - harness.expected_logits(0)).abs().max() > 1e-2


def test_parts_of_images_take_the_place_of_successors(pairs: Pairs) -> None:
    harness = SpeculatorHarness(*pairs["GQA"], SHAPE)
    harness.prefill(0, 4)
    harness.start(1, harness.random_tokens(20))
    harness.features[1] = {position: harness.random_hidden(1)[0] for position in (0, 7, 8, 9, 15)}
    del harness.features[1][0]  # no row's successor
    harness.lengthen(0, [3])
    harness.lengthen(1, [4])
    harness.extend(decode=[0], chunks=[(1, 8)])
    harness.extend(chunks=[(1, 20)])
    for slot in range(2):
        torch.testing.assert_close(kept_logits(harness, slot), harness.expected_logits(slot), atol=1e-4, rtol=0)


def test_pages_of_another_request_with_the_same_beginning(pairs: Pairs) -> None:
    harness = SpeculatorHarness(*pairs["GQA"], SHAPE)
    harness.prefill(0, 14)
    harness.start(3, harness.texts[0][:10] + harness.random_tokens(3))
    harness.lengthen(3, [9])
    harness.state.page_tables[3, :2] = harness.state.page_tables[0, :2]
    harness.state.committed_len_cpu[3] = 8
    harness.hidden[3][:8] = harness.hidden[0][:8]
    harness.extend(chunks=[(3, 13)])
    torch.testing.assert_close(kept_logits(harness, 3), harness.expected_logits(3), atol=1e-4, rtol=0)


def test_a_slot_is_drafted_for_only_up_to_date(pairs: Pairs) -> None:
    harness = SpeculatorHarness(*pairs["GQA"], SHAPE)
    harness.prefill(2, 6)
    harness.state.committed_len_cpu[2] += 1
    with pytest.raises(AssertionError, match="slot 2 has 7 committed tokens, but the draft has seen 6"):
        harness.speculator.propose([2], [1])
    with pytest.raises(AssertionError, match="the draft has 6 rows of slot 2, but goes on at 7"):
        harness.lengthen(2, [1, 2])
        harness.extend(decode=[2])
    harness.release(2)
    with pytest.raises(AssertionError, match="the draft has seen None"):
        harness.speculator.propose([2], [1])


@pytest.mark.parametrize(
    "changes",
    [
        {"embed": "own"},
        {"head": "own"},
        {"kv_role": "target"},
        {"hidden_source": "aux"},
        {"successor_depth": 0},
        {"tokens_per_forward": 4},
        {"position_rule": "constant"},
        {"noncausal_block": True},
    ],
    ids=str,
)
def test_other_drafts_are_refused_by_what_they_need(pairs: Pairs, changes: dict[str, object]) -> None:
    parts = SpeculatorHarness(*pairs["GQA"], SHAPE).parts
    assert parts.draft is not None
    ((field, value),) = changes.items()
    spec = replace(parts.draft.spec, **changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"has {field} {value!r}, but this way of drafting takes"):
        EagleSpeculator(replace(parts, draft=replace(parts.draft, spec=spec)))
    require(parts.draft.spec, embed="target")


def test_registry() -> None:
    assert SPECULATORS.names() == ["EAGLE", "NGRAM"]
    assert SPECULATORS.get("EAGLE") is EagleSpeculator
    with pytest.raises(ConfigError, match=r"unknown speculative algorithm 'EAGEL'.*Did you mean 'EAGLE'"):
        SPECULATORS.get("EAGEL")


def test_no_width_but_the_targets(pairs: Pairs) -> None:
    harness = SpeculatorHarness(*pairs["MLA"], SHAPE)
    harness.prefill(0, 2)
    kept = harness.speculator.kept_of([0])
    assert kept.logits_hidden.shape == kept.feedback_hidden.shape == (1, DIM)
