"""Several tokens in one output, as accepted drafts bring them, against rules applied to the whole answer at once."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slipstream.messages.queues import LocalQueue
from slipstream.messages.sampling import DraftStats, FinishReason, Logprob, SamplingParams
from slipstream.messages.to_scheduler import FinishChoice
from slipstream.messages.to_server import TextOutput
from slipstream.messages.to_tokenizer import Generate, SchedulerReady, TextPrompt, TokenOutput, TokenOutputs
from slipstream.tokenizer.core import TokenizerCore
from slipstream.tokenizer.draft_stats import up_to_stop

EOS, NUM_DRAFTS = 257, 5
ALPHABET = "aabbE \u00e9\u20ac\U0001f600"  # one to four bytes, so tokens, for each character

texts = st.text(ALPHABET, max_size=24)
stop_lists = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3)
run_lists = st.lists(st.integers(1, NUM_DRAFTS + 1), min_size=1, max_size=8)  # tokens of an output, in turn


@dataclass
class Choice:
    """A generated text in runs, and what the runs become; `drafts` is as a scheduler counts."""

    outputs: list[TokenOutput]
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    last: TextOutput | None = None

    def take(self, output: TextOutput) -> None:
        assert self.last is None or self.last.finish is None, "text after the end"
        assert output.logprobs is not None and len(output.logprobs) == len(output.token_ids)
        self.text += output.text
        self.token_ids += output.token_ids
        self.logprobs += [token.logprob for token in output.logprobs]
        self.last = output
        assert output.num_generated == len(self.token_ids)


def to_outputs(choice: int, text: str, runs: list[int], by_id: bool) -> list[TokenOutput]:
    """Each byte a token, each run a verify step of which all tokens but one were drafts."""
    ids = [*text.encode(), EOS] if by_id else [*text.encode()] or [97]
    outputs: list[TokenOutput] = []
    accepted, start = [0] * (NUM_DRAFTS + 1), 0
    while start < len(ids):
        run = ids[start : start + runs[len(outputs) % len(runs)]]
        accepted[len(run) - 1] += 1
        last = start + len(run) == len(ids)
        outputs.append(
            TokenOutput(
                "r",
                choice,
                run,
                6,
                0,
                (FinishReason("stop", EOS) if by_id else FinishReason("length")) if last else None,
                [Logprob(token, -float(start + i)) for i, token in enumerate(run)],
                drafts=DraftStats(NUM_DRAFTS * (len(outputs) + 1), tuple(accepted)),
            )
        )
        start += len(run)
    return outputs


def first_match(text: str, stops: list[str]) -> tuple[int, int, str] | None:
    """Where the stop string that completes first begins and ends; the longest of several."""
    matches = [(end, -len(stop), stop) for stop in stops for end in range(len(text) + 1) if text[:end].endswith(stop)]
    return (min(matches)[0] + min(matches)[1], min(matches)[0], min(matches)[2]) if matches else None


def check(choice: Choice, text: str, stops: list[str], by_id: bool, ended: list[FinishChoice]) -> None:
    """Text, ids, logprobs, usage, reason, drafts and what the scheduler is told, from the whole text alone."""
    text = text or ("" if by_id else "a")
    match = first_match(text, stops)
    kept = text if match is None else text[: match[0]]
    ids = [*kept.encode(), EOS] if match is None and by_id else [*kept.encode()]
    assert choice.last is not None
    assert (choice.text, choice.token_ids) == (kept, ids)
    assert choice.logprobs == [-float(i) for i in range(len(ids))]
    assert choice.last.num_generated == len(ids)
    if match is None:
        assert choice.last.finish == choice.outputs[-1].finish and ended == []
        assert choice.last.drafts == choice.outputs[-1].drafts
        return
    assert choice.last.finish == FinishReason("stop", match[2])
    num_read = len(text[: match[1]].encode())
    before, steps = 0, Counter[int]()
    for output in choice.outputs:  # tokens up to the stop's last count, drafts as well
        if before >= num_read:
            break
        steps[min(len(output.token_ids) - 1, num_read - before)] += 1
        before, last = before + len(output.token_ids), output
    accepted = tuple(steps[i] for i in range(NUM_DRAFTS + 1))
    assert choice.last.drafts == DraftStats(NUM_DRAFTS * steps.total(), accepted)
    assert ended == ([] if last.finish else [FinishChoice("r", choice.last.choice, len(ids))])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the tokenizer keeps nothing
@given(st.lists(st.tuples(texts, run_lists, st.booleans()), min_size=1, max_size=3), stop_lists)
def test_any_runs_say_what_the_whole_text_says(
    byte_tokenizer: Any, wanted: list[tuple[str, list[int], bool]], stops: list[str]
) -> None:
    scheduler: LocalQueue[Any] = LocalQueue()
    server: LocalQueue[Any] = LocalQueue()
    core = TokenizerCore(byte_tokenizer, scheduler, server, eos_token_ids=(EOS,), vocab_size=258)
    core.handle(SchedulerReady(1000, 101, 4, {}))
    sampling = SamplingParams(500, 7, top_logprobs=0)
    core.handle(Generate("r", TextPrompt("hello"), sampling, num_choices=len(wanted), stop=tuple(stops)))
    server.drain(), scheduler.drain()
    choices = [Choice(to_outputs(i, text, runs, by_id)) for i, (text, runs, by_id) in enumerate(wanted)]
    for turn in range(max(len(choice.outputs) for choice in choices)):
        core.handle(TokenOutputs([choice.outputs[turn] for choice in choices if turn < len(choice.outputs)]))
    for message in server.drain():
        for output in message.outputs:
            choices[output.choice].take(output)
    ended = scheduler.drain()
    for i, (text, _, by_id) in enumerate(wanted):
        check(choices[i], text, stops, by_id, [message for message in ended if message.choice == i])
    assert core.num_requests == 0


def test_drafts_are_those_known_last() -> None:
    stats = DraftStats(3, (0, 1))
    assert up_to_stop(None, None, 1) is None
    assert up_to_stop(stats, None, 0) == stats  # an end that comes without tokens
    assert up_to_stop(None, stats, 2) == stats
    assert up_to_stop(None, stats, 0) == DraftStats(3, (1, 0))
    assert up_to_stop(stats, DraftStats(3, (0, 1)), 0) == stats  # a step without drafts: nothing to leave out
