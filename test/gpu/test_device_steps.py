"""Steps that the device drives: with CUDA graphs and without bit for bit the same, and what the CPU computes."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from slipstream.attention.paging import locate
from slipstream.messages.sampling import SamplingParams
from slipstream.messages.to_worker import NewRequest, Plan, PrefillChunk
from slipstream.speculative.autoregressive import AutoRegressiveSpeculator
from slipstream.worker.decode_program import DecodeProgram
from slipstream.worker.device_worker import DeviceWorker
from slipstream.worker.prefill_program import PrefillProgram, PrefillShape
from slipstream.worker.step_graphs import DecodeRun
from slipstream.worker.worker import Worker
from support.gpu_models import (
    CONTEXT,
    MAX_SLOTS,
    PAGE_SIZE,
    load_gpu_worker,
    pages_of,
    prompt_of,
    write_gpu_pair,
)
from support.running_worker import GREEDY, Driver, load_worker

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]  # kernels are compiled the first time

BF16, FP32 = "bfloat16", "float32"
NUM_STEPS = 8
SAMPLED = SamplingParams(max_new_tokens=64, seed=5, temperature=0.8, top_k=40, top_p=0.9, min_p=0.01)
Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_gpu_pair(tmp_path_factory.mktemp("pair"))


def capture(worker: DeviceWorker, batches: Sequence[int], depth: int, shapes: Sequence[PrefillShape] = ()) -> None:
    """Only these graphs, with every number of drafts up to `depth`."""
    worker._graphs.capture(batches, range(depth + 1), shapes, lambda done, total: None)


# ---- the same plans with graphs and without


def sampling_of(slot: int) -> SamplingParams:
    if slot % 3 == 0:
        return GREEDY
    return msgspec.structs.replace(SAMPLED, seed=slot, accept_cap=1 if slot == 4 else None)


def enter(slot: int, sampling: SamplingParams | None = None, *, warm: bool) -> NewRequest:
    """Slot 2 has a prompt that is longer than a program's share of keys."""
    prompt = prompt_of(slot, 300 if slot == 2 else 5 + 7 * slot % 40)
    return NewRequest(slot, prompt, len(prompt), sampling or sampling_of(slot), pages_of(slot), 0, warm=warm)


def make_plans(batch: int, depth: int, samplings: Mapping[int, SamplingParams] | None = None) -> list[Plan]:
    """`batch` requests, of which slot 1 is cold; in each step they stand in another order with other numbers of drafts,
    of which one at least is `depth`, but in two steps nobody has drafts. `samplings` replace those of some slots.
    """
    rng = random.Random(batch)
    new = [enter(slot, (samplings or {}).get(slot), warm=depth > 0 and slot != 1) for slot in range(batch)]
    plans = [Plan(1, new=new, chunks=[PrefillChunk(each.slot, 0, each.prompt_len, True) for each in new])]
    for step in range(NUM_STEPS):
        depths = {} if step in (2, 5) else {slot: rng.randint(0, depth) for slot in range(batch)} | {0: depth}
        plans.append(
            Plan(
                step + 2,
                decode=rng.sample(range(batch), batch),
                draft_depths={slot: count for slot, count in depths.items() if count},
            )
        )
    return plans


def run(worker: DeviceWorker, plans: Sequence[Plan]) -> list[Any]:
    """What every slot got in every step, two steps in flight."""
    results = []
    for plan in plans:
        while worker.num_pending >= 2:
            results += worker.finished()
        worker.submit(plan)
    while worker.num_pending:
        results += worker.finished()
    results += worker.finished()
    assert [result.step for result in results] == [plan.step for plan in plans]
    assert not any(entry.error for result in results for entry in result.results)
    return [[(entry.slot, entry.token_ids, entry.num_drafts) for entry in result.results] for result in results]


def draft_of(worker: Worker) -> AutoRegressiveSpeculator | None:
    if worker.parts.speculation is None:
        return None
    speculator = worker.parts.speculation.speculator
    assert isinstance(speculator, AutoRegressiveSpeculator)
    return speculator


def stored(worker: DeviceWorker, caches: Sequence[Tensor], slot: int) -> list[Tensor]:
    """Keys and values of the slot's committed tokens."""
    state = worker.parts.state
    positions = torch.arange(int(state.committed_len[slot]), device=state.committed_len.device)
    rows = locate(state.page_tables, torch.full_like(positions, slot), positions, PAGE_SIZE)
    return [cache.flatten(0, 1)[rows] for cache in caches]


def final_state(worker: DeviceWorker, batch: int) -> dict[str, Tensor]:
    """All that later steps will read of these slots. The draft's part of slot 1, which is cold, is nobody's."""
    state, draft = worker.parts.state, draft_of(worker)
    found = {"lengths": state.committed_len[:batch].clone(), "bonus": state.bonus[:batch].clone()}
    for slot in range(batch):
        found |= {f"KV {slot} {i}": kv for i, kv in enumerate(stored(worker, worker.parts.caches, slot))}
        if draft is not None and slot != 1:
            found |= {f"draft {slot} {i}": kv for i, kv in enumerate(stored(worker, draft.attention._caches, slot))}
            found[f"kept {slot}"] = draft.kept.feedback_hidden[slot].clone()
    return found


@pytest.fixture(scope="module")
def workers(pair: Pair) -> Iterator[Callable[[int, str], tuple[DeviceWorker, DeviceWorker]]]:
    """With graphs and without, by the longest path of drafts and the dtype."""
    made: dict[tuple[int, str], tuple[DeviceWorker, DeviceWorker]] = {}

    def make(depth: int, dtype: str) -> tuple[DeviceWorker, DeviceWorker]:
        if (depth, dtype) not in made:
            made.clear()
            draft = pair[1] if depth else None
            with_graphs, without = (load_gpu_worker(pair[0], draft, max(depth, 1), dtype=dtype) for _ in range(2))
            capture(with_graphs, [1, 3, 6, MAX_SLOTS], depth)
            made[depth, dtype] = with_graphs, without
        return made[depth, dtype]

    yield make
    made.clear()


def both(
    pair_of_workers: tuple[DeviceWorker, DeviceWorker],
    batch: int,
    depth: int,
    samplings: Mapping[int, SamplingParams] | None = None,
) -> tuple[Any, Any]:
    """(tokens, state) of each worker."""
    found = []
    for worker in pair_of_workers:
        results = run(worker, make_plans(batch, depth, samplings))
        found.append((results, final_state(worker, batch)))
        worker.step(Plan(99, release=list(range(batch))))
    return found[0], found[1]


@pytest.mark.parametrize("batch", [1, 3, MAX_SLOTS])
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_full_graph_gives_the_bits_of_single_launches(workers: Any, batch: int, depth: int) -> None:
    """Tokens, lengths, KV of target and draft, and what the draft has kept."""
    (tokens, state), (others, other_state) = both(workers(depth, BF16), batch, depth)
    assert tokens == others
    assert state.keys() == other_state.keys()
    assert [name for name in state if not torch.equal(state[name], other_state[name])] == []
    if depth and batch == MAX_SLOTS:
        accepted = sum(len(token_ids) - 1 for entries in tokens for _, token_ids, _ in entries)
        assert accepted > 0, "no draft was accepted: nothing was tested"


@pytest.mark.parametrize("depth", [0, 2])
def test_where_the_host_draws_graphs_give_the_same_bits(workers: Any, depth: int) -> None:
    """Penalties and logprobs: the tail of the step is not the graph's."""
    scored = msgspec.structs.replace(GREEDY, top_logprobs=2)
    penalised = msgspec.structs.replace(SAMPLED, repetition_penalty=1.3, logit_bias={80: 2.0})
    found, other = both(workers(depth, BF16), 6, depth, {3: scored, 5: penalised})
    assert found[0] == other[0]
    assert [name for name in found[1] if not torch.equal(found[1][name], other[1][name])] == []


@pytest.mark.parametrize("batch", [5, 9])
@pytest.mark.parametrize("depth", [0, 2])
def test_a_graph_that_is_filled_up_gives_the_same_tokens(workers: Any, batch: int, depth: int) -> None:
    """In fp32: with more rows cuBLAS may add in another order, whose last bits decide nothing there."""
    (tokens, state), (others, other_state) = both(workers(depth, FP32), batch, depth)
    assert tokens == others
    for name, found in state.items():
        torch.testing.assert_close(found, other_state[name], rtol=1e-3, atol=1e-3)


# ---- every graph beside its own program


def everything(worker: DeviceWorker) -> list[Tensor]:
    """The tensors that a step changes."""
    state, draft = worker.parts.state, draft_of(worker)
    tensors = [state.committed_len, state.bonus, *worker.parts.caches]
    if draft is not None:
        tensors += [*draft.attention._caches, draft.kept.logits_hidden, draft.kept.feedback_hidden]
    return tensors


def without_nobodys(worker: DeviceWorker, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Without the dummy slot and the sink page, where rows that fill up a graph leave what they like."""
    num_slots = worker.parts.state.dummy_slot
    return [tensor[:num_slots] if len(tensor) == num_slots + 1 else tensor[1:] for tensor in tensors]


def assert_graph_is_program(worker: DeviceWorker, replay: Callable[[], Tensor], launch: Callable[[], Tensor]) -> None:
    """From one state both lead to the same bits. They return the results of the slots that are there."""
    tensors = everything(worker)
    before = [tensor.clone() for tensor in tensors]
    found = []
    for step in (replay, launch):
        results = step()
        assert results[:, 1].all(), "something was not finite"
        found.append([tensor.clone() for tensor in (*without_nobodys(worker, tensors), results)])
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(old)
    assert [index for index, pair in enumerate(zip(*found, strict=True)) if not torch.equal(*pair)] == []
    assert any(not torch.equal(*pair) for pair in zip(found[0], without_nobodys(worker, before), strict=False))


@torch.inference_mode()
@pytest.mark.parametrize("depth", [0, 2])
def test_every_graph_gives_the_bits_of_its_program(pair: Pair, depth: int) -> None:
    """Decode graphs that are filled up with the dummy slot, and those of prefill."""
    worker = load_gpu_worker(pair[0], pair[1] if depth else None, max(depth, 1), dtype=BF16)
    shapes = [PrefillShape(32, 2), PrefillShape(128, 4)]
    capture(worker, [4, 8], depth, shapes)
    new = [enter(slot, warm=depth > 0) for slot in (4, 0, 3)]
    worker.step(Plan(1, new=new, chunks=[PrefillChunk(each.slot, 0, each.prompt_len, True) for each in new]))
    for key, run in worker._graphs._decode.items():
        alone = DecodeProgram(worker._device_parts, key.batch, key.depth, key.extends)
        for program in (run.program, alone):
            program.load([each.slot for each in new], [key.depth, 0, key.depth])
        assert_graph_is_program(worker, partial(replay_decode, run, 3), partial(launch, alone, 3))
    others = [enter(slot, warm=depth > 0) for slot in (7, 6)]
    worker._admit(Plan(2, new=others))
    for key, (with_graph, graph) in worker._graphs._prefill.items():
        lengths = [min(each.prompt_len, key.shape.num_rows // 2 - 1) for each in others]
        chunks = [
            PrefillChunk(each.slot, 0, length, length == each.prompt_len)
            for each, length in zip(others, lengths, strict=True)
        ]
        alone_too = PrefillProgram(worker._device_parts, key.shape, key.extends)
        for prefill in (with_graph, alone_too):
            prefill.load(chunks, worker.parts.state.prompts_cpu)
        assert_graph_is_program(worker, partial(replay_prefill, with_graph, graph, 2), partial(launch, alone_too, 2))
    dummy = worker.parts.state.dummy_slot
    assert int(worker.parts.state.committed_len[dummy]) == int(worker.parts.state.bonus[dummy]) == 0


def replay_decode(run: DecodeRun, count: int) -> Tensor:
    run.forward()
    run.tail()
    return run.program.results[:count]


def replay_prefill(program: PrefillProgram, graph: Any, count: int) -> Tensor:
    graph.replay()
    return program.results[:count]


def launch(program: DecodeProgram | PrefillProgram, count: int) -> Tensor:
    program.run()
    return program.results[:count]


# ---- the CPU as the reference

YARN = {
    "yarn": {"factor": 4, "original_max_position_embeddings": 16, "beta": 4, "alpha": 1, "apply_scale": True},
    "llama_4_scaling": {"original_max_position_embeddings": 16, "beta": 0.2},
}
FAMILIES: dict[str, dict[str, Any]] = {"dense": {}, "yarn": YARN, "windows": {"sliding_window": [None, 20]}}
NEW_TOKENS = 24
PROMPT = prompt_of(1, 50)
CHUNK = 13


def with_graphs(pair: Pair, *, drafts: bool, dtype: str) -> DeviceWorker:
    worker = load_gpu_worker(pair[0], pair[1] if drafts else None, 2, dtype=dtype)
    capture(worker, [1, 2], 2 if drafts else 0, [PrefillShape(32, 2)])
    return worker


def cpu_worker(target: Path, dtype: str = FP32) -> Worker:
    return load_worker(target, dtype=dtype, context_length=CONTEXT, page_size=PAGE_SIZE)


def drafted_tokens(worker: DeviceWorker, count: int) -> list[int]:
    """As Driver.generate(), with two drafts in every step."""
    driver = Driver(worker)
    tokens = list(driver.prefill(0, PROMPT, pages_of(0), chunk=CHUNK, warm=True)[-1].token_ids)
    while len(tokens) < count:
        tokens += driver.step(decode=[0], draft_depths={0: 2})[0].token_ids
    return tokens[:count]


@pytest.mark.parametrize("family", FAMILIES)
def test_fp32_gives_the_tokens_of_the_cpu(family: str, tmp_path: Path) -> None:
    """Chunks and decode steps in graphs, with drafts and without."""
    pair = write_gpu_pair(tmp_path, **FAMILIES[family])
    expected = Driver(cpu_worker(pair[0])).generate(0, PROMPT, pages_of(0), NEW_TOKENS, chunk=CHUNK)
    plain = Driver(with_graphs(pair, drafts=False, dtype=FP32))
    assert plain.generate(0, PROMPT, pages_of(0), NEW_TOKENS, chunk=CHUNK) == expected
    assert drafted_tokens(with_graphs(pair, drafts=True, dtype=FP32), NEW_TOKENS) == expected


def test_a_cached_beginning_is_read(pair: Pair) -> None:
    """Two pages of a prompt were computed for another slot, whose draft read them as well."""
    expected = Driver(cpu_worker(pair[0])).generate(0, PROMPT, pages_of(0), 8)
    worker = with_graphs(pair, drafts=True, dtype=FP32)
    driver = Driver(worker)
    driver.prefill(3, PROMPT, pages_of(3), warm=True)
    pages = [*pages_of(3)[:2], *pages_of(0)]
    tokens = list(driver.prefill(0, PROMPT, pages, num_cached=32, warm=True, release=[3])[-1].token_ids)
    num_accepted = 0
    while len(tokens) < 8:
        found = driver.step(decode=[0], draft_depths={0: 2})[0].token_ids
        tokens, num_accepted = tokens + found, num_accepted + len(found) - 1
    assert tokens[:8] == expected


def prompt_scores(worker: Worker, token_ids: Sequence[int]) -> tuple[list[float], list[float]]:
    """(logprob of each token from the second on, that of the likeliest token in its place)."""
    sampling = SamplingParams(max_new_tokens=1, seed=0, temperature=0.0, prompt_logprobs_from=1, top_logprobs=1)
    found = Driver(worker).prefill(0, token_ids, pages_of(0), sampling=sampling)[0].prompt_logprobs
    assert found is not None and len(found) == len(token_ids) - 1
    return [each.logprob for each in found], [each.top[0][1] for each in found]


def errors(found: Sequence[float], exact: Sequence[float]) -> Tensor:
    return (torch.tensor(found) - torch.tensor(exact)).abs()


def test_bf16_scores_a_prompt_as_exactly_as_the_cpu(pair: Pair) -> None:
    """Beside fp32; the step of a slot that wants logprobs is planned on the host."""
    prompt = prompt_of(2, 200)
    exact, _ = prompt_scores(cpu_worker(pair[0]), prompt)
    on_cpu = errors(prompt_scores(cpu_worker(pair[0], BF16), prompt)[0], exact)
    on_gpu = errors(prompt_scores(load_gpu_worker(pair[0], dtype=BF16), prompt)[0], exact)
    print(f"mean error in nats: CPU {on_cpu.mean():.4f}, GPU {on_gpu.mean():.4f}")
    assert on_gpu.mean() < 1.5 * on_cpu.mean()
    assert on_gpu.max() < 3 * on_cpu.max()


@pytest.mark.parametrize("drafts", [False, True])
def test_bf16_draws_what_is_likeliest_but_for_its_rounding(pair: Pair, drafts: bool) -> None:
    """Each token that the graphs drew is, for the CPU in fp32, nearly as likely as the likeliest in its place."""
    worker = with_graphs(pair, drafts=drafts, dtype=BF16)
    if drafts:
        tokens = drafted_tokens(worker, NEW_TOKENS)
    else:
        tokens = Driver(worker).generate(0, PROMPT, pages_of(0), NEW_TOKENS, chunk=CHUNK)
    drawn, best = prompt_scores(cpu_worker(pair[0]), [*PROMPT, *tokens])
    misses = errors(best, drawn)[-NEW_TOKENS:]
    on_cpu = errors(prompt_scores(cpu_worker(pair[0], BF16), [*PROMPT, *tokens])[0], drawn).max()
    print(f"{int((misses > 0).sum())} of {NEW_TOKENS} tokens are not the likeliest, by at most {misses.max():.4f} nats")
    assert misses.max() < 4 * on_cpu, "more than two logits' rounding errors"
