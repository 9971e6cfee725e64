"""Plans in, results out: against transformers' greedy answers and log-probabilities."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from slipstream.errors import ConfigError
from slipstream.messages.sampling import Logprob, SamplingParams
from slipstream.messages.to_worker import NewRequest, PrefillChunk
from support.checkpoints import reference_model, write_native
from support.running_worker import GREEDY, Driver, load_worker

VOCAB_SIZE = 97


@pytest.fixture(scope="module")
def reference() -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield reference_model()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_native(tmp_path_factory.mktemp("checkpoint"), reference)


@pytest.fixture
def driver(folder: Path) -> Driver:
    return Driver(load_worker(folder))


def prompt_of(length: int, seed: int) -> list[int]:
    return torch.randint(0, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def greedy(reference: Any, prompt: list[int], num_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(reference(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@torch.inference_mode()
def log_softmax(reference: Any, tokens: list[int]) -> torch.Tensor:
    result: torch.Tensor = reference(torch.tensor([tokens])).logits[0].log_softmax(-1)
    return result


def assert_scores(logprobs: list[Logprob], expected: torch.Tensor, token_ids: list[int]) -> None:
    """Row i of `expected` scores token i."""
    assert [entry.token_id for entry in logprobs] == token_ids
    for entry, row in zip(logprobs, expected, strict=True):
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-4)
        for token_id, logprob in entry.top:
            assert logprob == pytest.approx(float(row[token_id]), abs=1e-4)
        assert [token_id for token_id, _ in entry.top] == row.topk(len(entry.top)).indices.tolist()


def test_greedy_answer(driver: Driver, reference: Any) -> None:
    prompt = prompt_of(11, 1)
    assert driver.generate(0, prompt, [9, 4, 7, 1, 6], 8) == greedy(reference, prompt, 8)


@pytest.mark.parametrize("chunk", [1, 3, 4, 10])
def test_chunked_prompt(driver: Driver, reference: Any, chunk: int) -> None:
    prompt = prompt_of(11, 2)
    results = driver.prefill(2, prompt, [9, 4, 7], chunk=chunk)
    assert [result.token_ids for result in results[:-1]] == [[]] * (len(results) - 1)
    assert results[-1].token_ids == greedy(reference, prompt, 1)


def test_chunks_and_decodes_share_a_step(driver: Driver, reference: Any) -> None:
    prompts = [prompt_of(length, length) for length in (5, 13, 9)]
    answers = [list(driver.prefill(0, prompts[0], [1, 2, 3, 4])[0].token_ids), [], []]
    new = [
        NewRequest(slot, prompts[slot], len(prompts[slot]), GREEDY, pages, 0)
        for slot, pages in ((1, [5, 6, 7, 8, 9]), (2, [10, 11, 12, 13]))
    ]
    results = driver.step(new=new, decode=[0], chunks=[PrefillChunk(1, 0, 8, False), PrefillChunk(2, 0, 9, True)])
    assert results[1].token_ids == []
    for plan in ({"decode": [0, 2], "chunks": [PrefillChunk(1, 8, 5, True)]}, {"decode": [2, 0, 1]}):
        for slot in (0, 2):
            answers[slot] += results[slot].token_ids
        results = driver.step(**plan)
        answers[1] += results[1].token_ids
    for slot in (0, 2):
        answers[slot] += results[slot].token_ids
    assert answers == [greedy(reference, prompt, len(answer)) for prompt, answer in zip(prompts, answers, strict=True)]


def test_a_plan_may_reuse_slots_and_pages_that_it_releases(driver: Driver, reference: Any) -> None:
    first, second = prompt_of(11, 3), prompt_of(6, 4)
    driver.generate(0, first, [1, 2, 3, 4], 3)
    new = NewRequest(0, second, 6, GREEDY, [3, 1], 0)
    tokens = driver.step(release=[0], new=[new], chunks=[PrefillChunk(0, 0, 6, True)])[0].token_ids
    tokens = tokens + driver.step(decode=[0])[0].token_ids
    tokens = tokens + driver.step(pages=[(0, [2])], decode=[0])[0].token_ids
    tokens = tokens + driver.step(decode=[0])[0].token_ids
    assert tokens == greedy(reference, second, 4)


def test_two_slots_share_cached_prefix_pages(driver: Driver, reference: Any) -> None:
    prefix = prompt_of(8, 5)
    prompts = [prefix + prompt_of(3, 6), prefix + prompt_of(5, 7)]
    driver.prefill(0, prompts[0], [1, 2, 3, 4])
    driver.prefill(1, prompts[1], [1, 2, 5, 6], num_cached=8)
    second = [driver.step(decode=[1, 0]) for _ in range(3)]
    for slot in (0, 1):
        tokens = [result[slot].token_ids[0] for result in second]
        assert tokens == greedy(reference, prompts[slot], 4)[1:]


def test_continues_after_preemption(driver: Driver, reference: Any) -> None:
    prompt = prompt_of(7, 8)
    answer = driver.generate(3, prompt, [1, 2, 3], 4)
    new = NewRequest(5, prompt + answer, len(prompt), GREEDY, [7, 6, 5, 4], 0)
    result = driver.step(release=[3], new=[new], chunks=[PrefillChunk(5, 0, 11, True)])[5]
    assert answer + result.token_ids == greedy(reference, prompt, 5)


def test_logprobs_are_those_of_the_model_not_of_the_sampler(driver: Driver, reference: Any) -> None:
    prompt = prompt_of(6, 10)
    sampling = SamplingParams(max_new_tokens=8, seed=3, temperature=0.3, top_k=2, logit_bias={5: 4.0}, top_logprobs=3)
    results = driver.prefill(0, prompt, [1, 2, 3], sampling=sampling)
    results += [driver.step(decode=[0])[0] for _ in range(3)]
    tokens = [token for result in results for token in result.token_ids]
    logprobs = [entry for result in results for entry in result.logprobs or []]
    assert all(len(entry.top) == 3 for entry in logprobs)
    assert_scores(logprobs, log_softmax(reference, prompt + tokens[:-1])[5:], tokens)


def test_logprobs_only_where_asked(driver: Driver) -> None:
    asked = SamplingParams(max_new_tokens=8, seed=0, temperature=0.0, top_logprobs=0)
    driver.prefill(0, prompt_of(5, 11), [1, 2])
    driver.prefill(1, prompt_of(5, 12), [3, 4], sampling=asked)
    results = driver.step(decode=[0, 1])
    assert results[0].logprobs is None
    assert [entry.token_id for entry in results[1].logprobs or []] == results[1].token_ids


@pytest.mark.parametrize("first_position", [0, 4, 9])
@pytest.mark.parametrize("chunk", [3, 100])
def test_prompt_logprobs(
    driver: Driver, reference: Any, first_position: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slipstream.worker.worker._MAX_LOGIT_ELEMENTS", 2 * VOCAB_SIZE)  # blocks of two rows
    prompt = prompt_of(10, 13)
    sampling = SamplingParams(
        max_new_tokens=8, seed=0, temperature=0.0, top_logprobs=2, prompt_logprobs_from=first_position
    )
    results = driver.prefill(0, prompt, [1, 2, 3], sampling=sampling, chunk=chunk)
    logprobs = [entry for result in results for entry in result.prompt_logprobs or []]
    first = max(first_position, 1)
    assert_scores(logprobs, log_softmax(reference, prompt)[first - 1 : -1], prompt[first:])
    assert driver.step(decode=[0])[0].prompt_logprobs is None


def test_prompt_logprobs_end_with_the_prompt_after_a_preemption(driver: Driver, reference: Any) -> None:
    tokens = prompt_of(10, 14)
    sampling = SamplingParams(max_new_tokens=8, seed=0, temperature=0.0, prompt_logprobs_from=0)
    new = NewRequest(0, tokens, 7, sampling, [1, 2, 3], 0)
    result = driver.step(new=[new], chunks=[PrefillChunk(0, 0, 10, True)])[0]
    assert_scores(result.prompt_logprobs or [], log_softmax(reference, tokens)[:6], tokens[1:7])


def test_a_request_with_broken_logits_fails_alone(driver: Driver, reference: Any) -> None:
    healthy, broken = prompt_of(6, 15), prompt_of(6, 16)
    answer = driver.generate(0, healthy, [1, 2, 3], 2)
    driver.prefill(1, broken, [4, 5, 6])
    driver.worker._attention._caches[0][4 * 4] = float("nan")  # type: ignore[attr-defined]
    results = driver.step(decode=[1, 0])
    assert "not finite" in str(results[1].error) and results[1].token_ids == []
    answer += results[0].token_ids
    results = driver.step(decode=[0, 1])  # the plan that was already in flight
    assert results[1].error
    answer += results[0].token_ids
    assert answer == greedy(reference, healthy, 4)
    second = prompt_of(9, 17)  # the slot and its pages serve the next request
    new = NewRequest(1, second, 9, GREEDY, [4, 5, 6], 0)
    result = driver.step(release=[1], new=[new], chunks=[PrefillChunk(1, 0, 9, True)])[1]
    assert result.error is None and result.token_ids == greedy(reference, second, 1)


@pytest.mark.parametrize("token_id", [-1, VOCAB_SIZE, 2**63])
def test_a_request_with_an_impossible_token_fails_alone(driver: Driver, reference: Any, token_id: int) -> None:
    prompt = prompt_of(4, 18)
    new = [NewRequest(0, [1, token_id, 2], 3, GREEDY, [1], 0), NewRequest(1, prompt, 4, GREEDY, [2], 0)]
    results = driver.step(new=new, chunks=[PrefillChunk(0, 0, 3, True), PrefillChunk(1, 0, 4, True)])
    assert "vocabulary" in str(results[0].error)
    assert results[1].token_ids == greedy(reference, prompt, 1)
    assert driver.step(decode=[0])[0].error
    assert driver.step(release=[0]) == {}


def test_rows_past_the_context_harm_nobody(folder: Path, reference: Any) -> None:
    driver = Driver(load_worker(folder, context_length=8))
    long, other = prompt_of(7, 19), prompt_of(4, 20)
    driver.prefill(0, long, [1, 2])
    answer = driver.generate(1, other, [3, 4], 1)
    for _ in range(4):  # slot 0 has no page for these positions: they go to the sink
        answer += driver.step(decode=[0, 1])[1].token_ids
    assert answer == greedy(reference, other, 5)


def test_a_plan_without_rows_is_a_result_without_entries(driver: Driver) -> None:
    assert driver.step() == {}


def test_sampling_with_a_seed_does_not_depend_on_the_batch(driver: Driver) -> None:
    sampling = SamplingParams(max_new_tokens=8, seed=12, temperature=1.0)
    prompt = prompt_of(6, 21)
    alone = driver.generate(0, prompt, [1, 2, 3], 5, sampling=sampling)
    driver.prefill(1, prompt_of(9, 22), [4, 5, 6, 7])
    together = list(driver.prefill(2, prompt, [8, 9, 10], sampling=sampling, release=[0])[0].token_ids)
    together += [driver.step(decode=[1, 2])[2].token_ids[0] for _ in range(4)]
    assert together == alone


def test_ready_says_what_was_loaded(driver: Driver) -> None:
    ready = driver.worker.ready
    num_parameters = 2 * 97 * 48 + 48 + 3 * (2 * 48 + 48 * (64 + 32 + 32) + 64 * 48 + 3 * 48 * 80)
    assert ready.num_pages == 1024 // 4 + 1
    assert (ready.info["device"], ready.info["dtype"]) == ("cpu", "float32")
    assert (ready.info["parameters"], ready.info["weight_bytes"]) == (num_parameters, 4 * num_parameters)
    assert ready.info["kv_bytes_per_token"] == 3 * 2 * 2 * 16 * 4
    assert "--max-total-tokens 1024" in ready.info["num_pages_reason"]


def test_dummy_weights_need_a_configuration_only(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "params.json").write_bytes((folder / "params.json").read_bytes())
    answers = [
        Driver(load_worker(tmp_path, load_format="dummy", random_seed=seed)).generate(0, [1, 2, 3], [1, 2], 5)
        for seed in (1, 1, 2)
    ]
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_device_is_a_config_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--device"):
        load_worker(folder, device="cuda")


def test_a_broken_chunk_is_reported_before_the_prompt_ends(driver: Driver) -> None:
    """Its pages may be shared as soon as its result is there."""
    prompt = prompt_of(9, 17)
    new = NewRequest(0, prompt, 9, GREEDY, [1, 2, 3], 0)
    assert driver.step(new=[new], chunks=[PrefillChunk(0, 0, 4, False)])[0].error is None
    driver.worker._attention._caches[1][1 * 4 + 2] = float("nan")  # type: ignore[attr-defined]
    result = driver.step(chunks=[PrefillChunk(0, 4, 3, False)])[0]
    assert "not finite" in str(result.error)
