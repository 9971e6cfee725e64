"""At the limit: a pool that is too small for what runs, and a share of the GPU that has no byte too many."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from slipstream.bench.presets import Preset, write_preset
from slipstream.engine import Answer, Engine
from support.gpu_models import DEVICE, free_gpu, gpu_engine, idle_status, prompt_of, write_gpu_pair

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]  # kernels are compiled the first time

AT_ONCE = 64
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
NUCLEUS: dict[str, Any] = {"temperature": 0.9, "top_p": 0.9, "ignore_eos": True}


def ask_all(engine: Engine, prompts: list[list[int]], new_tokens: int) -> list[Answer]:
    """All at once: two of four are greedy, two draw from a nucleus, and one of each wants logprobs."""

    def ask(index: int) -> Answer:
        sampling = (GREEDY, NUCLEUS)[index % 2] | {"max_new_tokens": new_tokens, "sampling_seed": index}
        return engine.generate(prompts[index], sampling, top_logprobs=2 if index % 4 < 2 else None)[0]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(ask, range(len(prompts))))


@pytest.mark.parametrize("with_drafts", [False, True], ids=["plain", "drafts"])
def test_preempted_requests_answer_what_others_answer(with_drafts: bool, tmp_path: Path) -> None:
    """In fp32. Long prompts come in chunks; batches of more than 16 have no graph here."""
    target, draft = write_gpu_pair(tmp_path)
    prompts = [prompt_of(index, 400 if index % 8 == 0 else 20 + index) for index in range(AT_ONCE)]
    options: dict[str, Any] = {"dtype": "float32", "max_running_requests": AT_ONCE, "chunked_prefill_size": 128}
    if DEVICE == "cuda":
        options["cuda_graph_max_bs"] = 16
    with gpu_engine(target, None, **options) as engine:
        expected = ask_all(engine, prompts, 120)
        assert idle_status(engine).counters.num_preemptions == 0
    with gpu_engine(target, draft if with_drafts else None, max_total_tokens=3072, **options) as engine:
        answers = ask_all(engine, prompts, 120)
        status = idle_status(engine)
    print(f"{status.counters.num_preemptions} preemptions, {status.counters.num_accepted_tokens} drafts accepted")
    assert status.counters.num_preemptions > 5
    assert status.num_pages_free + status.num_pages_cached == status.num_pages
    assert status.counters.num_integrity_errors == 0
    differing = [i for i in range(AT_ONCE) if answers[i].token_ids != expected[i].token_ids]
    assert differing == []
    for found, wanted in zip(answers, expected, strict=True):
        assert [token.token_id for token in found.logprobs or ()] == [token.token_id for token in wanted.logprobs or ()]
        assert [token.logprob for token in found.logprobs or ()] == pytest.approx(
            [token.logprob for token in wanted.logprobs or ()], abs=1e-3
        )


SHARE_BYTES = 6 * 2**30
CHUNK = 2048
WIDE = Preset(  # few layers below a large vocabulary: what a step takes beside weights and pages is much
    {
        "dim": 2048, "n_layers": 4, "head_dim": 128, "hidden_dim": 8192, "n_heads": 16, "n_kv_heads": 8,
        "norm_eps": 1e-5, "rope_theta": 1e6, "vocab_size": 131072, "max_position_embeddings": 4096,
    },
    draft_layers=1,
)  # fmt: skip
PROMPT_LENGTHS = (CHUNK, CHUNK + 1, 3000)


def test_traffic_stays_within_its_share_of_the_gpu(tmp_path: Path) -> None:
    """torch is refused whatever --mem-fraction-static does not give. With drafts and logprobs all rows of all requests
    are sampled on the host's order at once, which takes most.
    """
    total = torch.cuda.mem_get_info()[1]
    share = round(SHARE_BYTES / total, 4)
    folders = write_preset(WIDE, tmp_path, "wide")
    prompts = [prompt_of(index, PROMPT_LENGTHS[index % 3]) for index in range(AT_ONCE)]
    free_gpu()
    torch.cuda.set_per_process_memory_fraction(share)
    torch.cuda.reset_peak_memory_stats()
    try:
        with gpu_engine(
            folders.target,
            folders.draft,
            load_format="dummy",
            speculative_draft_load_format="dummy",
            dtype="bfloat16",
            mem_fraction_static=share,
            context_length=4096,
            max_running_requests=AT_ONCE,
            chunked_prefill_size=CHUNK,
            **({"cuda_graph_max_bs": 4} if DEVICE == "cuda" else {}),
        ) as engine:
            answers = [*ask_all(engine, prompts, 24), *all_with_logprobs(engine, prompts)]
            status = idle_status(engine)
            peak = torch.cuda.max_memory_reserved()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    print(
        f"{SHARE_BYTES / 2**30:.2f} GiB given, {peak / 2**30:.2f} GiB reserved at most, {status.num_pages} pages, "
        f"{status.counters.num_preemptions} preemptions"
    )
    assert all(answer.finish_reason == "length" and len(answer.token_ids) == 24 for answer in answers)
    assert status.num_pages < AT_ONCE * 4096 // 16, "the share did not bound the pool: nothing was tested"
    assert status.num_pages_free + status.num_pages_cached == status.num_pages


def all_with_logprobs(engine: Engine, prompts: list[list[int]]) -> list[Answer]:
    """From nuclei, which have to be sorted."""
    return engine.generate(prompts, NUCLEUS | {"max_new_tokens": 24, "temperature": 1.5}, top_logprobs=20)
