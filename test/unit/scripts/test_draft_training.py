"""Drafts are trained on the rows that a server gives them, and their acceptance length is counted as a server does."""

import os
import stat
import sys
from dataclasses import asdict
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))

from embedded_training.draft_batches import PROMPT_WEIGHT, written_rows
from embedded_training.draft_evaluate import Acceptance, Replies, acceptance, greedy_replies, walked
from embedded_training.draft_model import DraftModel, save_draft
from embedded_training.draft_target import EmbeddedTarget
from embedded_training.draft_text import TextCorpus, answered_chats
from embedded_training.model import EmbeddedModel, Shape, save_native
from slipstream.errors import ConfigError

SHAPE = Shape(
    dim=32, n_layers=2, head_dim=16, hidden_dim=48, n_heads=4, n_kv_heads=2, norm_eps=1e-5, vocab_size=64,
    rope_theta=1e4, tied_embeddings=True, max_position_embeddings=96,
)  # fmt: skip


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedTarget:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = EmbeddedModel(SHAPE)
    with torch.no_grad():
        model.tok_embeddings.mul_(20)
    folder = tmp_path_factory.mktemp("target")
    save_native(model, folder)
    return EmbeddedTarget(folder, torch.float32, "cpu")


def random_draft() -> DraftModel:
    torch.manual_seed(1)
    return DraftModel(asdict(SHAPE))


def test_an_unrolled_row_sees_what_a_served_row_sees(target: EmbeddedTarget) -> None:
    """Row a of step s is the last of a + s + 1 causal rows, of which the last s have the draft's own states."""
    draft, tokens = random_draft(), torch.randint(64, (2, 12))
    hidden, embeddings = target.hidden(tokens), F.embedding(tokens, target.embeddings)
    outs, _, _ = draft.unrolled(embeddings, hidden, target.head, hidden, torch.ones(2, 12), 4)
    for anchor in (0, 3, 7):
        states = hidden[:, : anchor + 1]
        for step in range(4):
            served = draft(embeddings[:, 1 : anchor + step + 2], states)[:, -1]
            torch.testing.assert_close(outs[step][:, anchor], served, rtol=1e-4, atol=1e-4)
            states = torch.cat([states, served[:, None]], dim=1)


def test_the_losses_are_cross_entropy_and_smooth_l1(target: EmbeddedTarget) -> None:
    from embedded_training.draft_train import expected_rows

    draft, tokens = random_draft(), torch.randint(64, (2, 12))
    hidden, embeddings = target.hidden(tokens), F.embedding(tokens, target.embeddings)
    weights = torch.rand(2, 12)
    expected = expected_rows(hidden, target.head, 0.25)
    outs, entropies, gaps = draft.unrolled(embeddings, hidden, target.head, expected, weights, 3)
    logits = F.linear(hidden, target.head)
    wanted = 0.75 * logits.softmax(-1) + 0.25 * F.one_hot(logits.argmax(-1), 64)
    for step, out in enumerate(outs):
        kept, rows = slice(0, 12 - step - 1), slice(step + 1, 12)
        log_q = F.linear(out, target.head).log_softmax(-1)
        entropy = -(wanted[:, rows] * log_q[:, kept]).sum(-1) * weights[:, rows]
        gap = F.smooth_l1_loss(out[:, kept], hidden[:, rows], reduction="none").mean(-1) * weights[:, rows]
        torch.testing.assert_close(entropies[step], entropy.sum(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gaps[step], gap.sum(), rtol=1e-4, atol=1e-4)


def test_continuations_are_the_targets_own(target: EmbeddedTarget) -> None:
    tokens, starts = torch.randint(64, (3, 20)), torch.tensor([5, 9, 12])
    rows = target.continue_rows(tokens, starts, torch.zeros(3, 20))
    best = F.linear(target.hidden(rows), target.head).argmax(-1)
    for row, start in enumerate(starts):
        assert rows[row, :start].equal(tokens[row, :start])
        assert rows[row, start:].equal(best[row, start - 1 : -1])


def test_time_ends_a_continuation(target: EmbeddedTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns that are done are those of a continuation without a limit."""
    tokens, starts = torch.randint(64, (3, 20)), torch.tensor([5, 9, 12])
    whole = target.continue_rows(tokens, starts, torch.zeros(3, 20))
    clock = count()
    monkeypatch.setattr("embedded_training.draft_target.time.perf_counter", lambda: float(next(clock)))
    part = target.continue_rows(tokens, starts, torch.zeros(3, 20), deadline=6.0)
    assert part.equal(whole[:, :11])  # one look at the clock before the first token, one after each of six
    assert target.continue_rows(tokens, starts, torch.zeros(3, 20), deadline=0.0).equal(tokens[:, :5])


def test_rows_and_time_limit_what_is_written(target: EmbeddedTarget) -> None:
    """No row more than asked; without time the least number, of text that nobody continued and little counts."""
    rng = np.random.default_rng(0)
    asked: list[int] = []

    def prompts(rows: int) -> Tensor:
        asked.append(rows)
        return torch.randint(64, (rows, 40))

    tokens, weights = written_rows(target, prompts, (1, 10, 4), 1e6, rng)
    assert asked == [4, 4, 2] and len(tokens) == len(weights) == 10
    assert ((weights == 1).sum(1) >= 20).all()
    tokens, weights = written_rows(target, prompts, (6, 10, 4), 0.0, rng)
    assert len(tokens) == 8 and weights.max() == torch.tensor(PROMPT_WEIGHT) and (weights[:, -20:] == 0).all()


def test_answers_keep_to_their_time(target: EmbeddedTarget) -> None:
    """Of three conversations; with no time there is no answer, and the error names the options."""
    corpus = TextCorpus(np.zeros(0, dtype=np.int32), [[1, 5, 9], [1, 7], [1, 8, 30]], 1, (2,))
    made = answered_chats(target, corpus, (3, 40), 2, 1e6, "cpu")
    assert [tuple(tokens.shape) for tokens, _ in made] == [(2, 40), (1, 40)]
    with pytest.raises(ConfigError, match="--write-seconds"):
        answered_chats(target, corpus, (3, 40), 2, 0.0, "cpu")


def test_a_written_draft_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_draft(random_draft(), tmp_path)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}


def test_sampled_continuations_follow_the_distribution(target: EmbeddedTarget) -> None:
    torch.manual_seed(3)
    tokens = torch.randint(64, (1, 5)).repeat(20000, 1)
    drawn = target.continue_rows(tokens, torch.full((20000,), 4), torch.ones(20000, 5))[:, 4]
    chances = F.linear(target.hidden(tokens[:1])[0, 3], target.head).softmax(-1)
    seen = torch.bincount(drawn, minlength=64)
    common = chances * 20000 > 5
    statistic = ((seen - chances * 20000).square() / (chances * 20000))[common].sum()
    degrees = int(common.sum()) - 1
    assert statistic < degrees + 5 * (2 * degrees) ** 0.5


@torch.no_grad()
def replayed(target: EmbeddedTarget, draft: DraftModel, replies: Replies, drafts: int = 3) -> Acceptance:
    """Runs draft and verify step by step over the replies, as a server does, but without caches."""
    tokens, hidden = replies.tokens, target.hidden(replies.tokens)

    def accepted(rows: Tensor, known: Tensor) -> Tensor:
        trial, states = tokens[rows].clone(), hidden[rows].clone()
        going = torch.ones(len(rows), dtype=torch.bool, device=tokens.device)
        count, lines = torch.zeros_like(known), torch.arange(len(rows), device=tokens.device)
        for i in range(drafts):
            last, width = known - 2 + i, int(known.max()) + drafts
            following = F.embedding(torch.roll(trial[:, :width], -1, dims=1), target.embeddings)
            out = draft(following, states[:, :width])[lines, last]
            guess = F.linear(out, target.head).float().argmax(-1)
            going &= guess == tokens[rows, known + i]
            count += going
            trial[lines, known + i], states[lines, last + 1] = guess, out
        return count

    return walked(replies, accepted, drafts)


def test_acceptance_is_that_of_a_replay(target: EmbeddedTarget) -> None:
    draft = random_draft()
    with torch.no_grad():  # a draft that is sometimes right: it passes the token on, and replies repeat tokens
        draft.eagle_linear[0, :, :32] = torch.eye(32)
    replies = greedy_replies(target, [[1, 5, 9], [1, 7, 7, 8, 30], [1, 2]] * 3, 30)
    one, other = replayed(target, draft, replies), acceptance(target, draft, replies)
    assert one == other
    assert one.length >= 1


def test_acceptance_of_a_draft_that_is_always_right() -> None:
    """Four tokens a step, and in the reply what is left of its end."""
    replies = Replies(torch.zeros(1, 20), torch.tensor([5]), torch.tensor([12]))
    found = walked(replies, lambda rows, known: torch.full_like(known, 3), 3)
    assert (found.length, found.length_in_reply, found.steps) == (4.0, 3.0, 2)
    assert found.per_position == [1.0, 1.0, 1.0]
