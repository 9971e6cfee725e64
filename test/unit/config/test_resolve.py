"""From options to configurations: what auto becomes, and what cannot go together."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest

from slipstream.config.images import ImageFormat
from slipstream.config.machine import Machine
from slipstream.config.options import LaunchOptions
from slipstream.config.resolve import resolve
from slipstream.errors import ConfigError
from support.model_facts import Model

LAPTOP = Machine(has_cuda=False, has_bf16_instructions=False, num_cores=2, memory_bytes=8 * 2**30)


def test_auto_follows_the_machine() -> None:
    old = resolve(LaunchOptions(), Model(), LAPTOP, system_seed=5)
    new = resolve(LaunchOptions(), Model(), dataclasses.replace(LAPTOP, has_bf16_instructions=True), system_seed=5)
    gpu = resolve(LaunchOptions(), Model(dtype="float16"), dataclasses.replace(LAPTOP, has_cuda=True), system_seed=5)
    assert (old.worker.device, old.worker.dtype) == ("cpu", "float32")
    assert (new.worker.device, new.worker.dtype) == ("cpu", "bfloat16")
    assert (gpu.worker.device, gpu.worker.dtype) == ("cuda", "float16")


def test_memory_and_chunks_follow_the_device() -> None:
    """Worker and scheduler agree on the largest chunk: the one sizes buffers for what the other plans."""
    cpu = resolve(LaunchOptions(), Model(), LAPTOP, system_seed=5)
    gpu = resolve(LaunchOptions(), Model(), dataclasses.replace(LAPTOP, has_cuda=True), system_seed=5)
    assert (cpu.worker.mem_fraction_static, gpu.worker.mem_fraction_static) == (0.25, 0.92)
    assert cpu.worker.chunked_prefill_size == cpu.scheduler.chunked_prefill_size == 512
    assert gpu.worker.chunked_prefill_size == gpu.scheduler.chunked_prefill_size == 8192
    given = resolve(LaunchOptions(chunked_prefill_size=77, mem_fraction_static=0.5), Model(), LAPTOP, system_seed=5)
    assert given.worker.chunked_prefill_size == given.scheduler.chunked_prefill_size == 77
    assert given.worker.mem_fraction_static == 0.5


def test_the_user_s_value_wins_and_every_option_has_a_reason() -> None:
    options = LaunchOptions(dtype="float32", context_length=100, random_seed=9, served_model_name="mine")
    resolved = resolve(options, Model(), LAPTOP, system_seed=5)
    assert resolved.worker.dtype == "float32"
    assert resolved.scheduler.context_length == resolved.worker.context_length == 100
    assert (resolved.server.random_seed, resolved.server.served_model_name) == (9, "mine")
    assert resolved.reasons["dtype"] == ("float32", "as given")
    assert resolved.reasons["page_size"][1] != ""
    assert set(resolved.reasons) == set(LaunchOptions.__dataclass_fields__)


def test_overlap_and_prefix_cache_switches_reach_the_scheduler() -> None:
    resolved = resolve(LaunchOptions(disable_radix_cache=True, disable_overlap_schedule=True), Model(), LAPTOP, 5)
    assert (resolved.scheduler.prefix_cache, resolved.scheduler.max_steps_in_flight) == (False, 1)
    resolved = resolve(LaunchOptions(), Model(), LAPTOP, 5)
    assert (resolved.scheduler.prefix_cache, resolved.scheduler.max_steps_in_flight) == (True, 2)


def test_a_context_longer_than_the_model_s_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--context-length is 4096, .* at most 2048"):
        resolve(LaunchOptions(context_length=4096), Model(), LAPTOP, 5)


def test_a_pool_smaller_than_a_page_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--max-total-tokens is 10, less than one page: --page-size is 16"):
        resolve(LaunchOptions(max_total_tokens=10), Model(), LAPTOP, 5)


IMAGES = ImageFormat(14, 2, 1540, 10, 12, 13)


@dataclass(frozen=True)
class SeeingModel(Model):
    images: ImageFormat | None = IMAGES


def test_images_reach_the_processes_that_need_them() -> None:
    text = resolve(LaunchOptions(max_images=5), Model(), LAPTOP, system_seed=0)
    assert (text.server.max_images, text.tokenizer.images, text.tokenizer.image_token_id) == (0, None, None)
    assert text.reasons["max_images"] == (0, "the model takes text only")
    seeing = resolve(LaunchOptions(max_images=5), SeeingModel(), LAPTOP, system_seed=0)
    assert (seeing.server.max_images, seeing.tokenizer.images) == (5, IMAGES)
    closed = resolve(LaunchOptions(max_images=0), SeeingModel(), LAPTOP, system_seed=0)
    assert (closed.server.max_images, closed.tokenizer.images, closed.tokenizer.image_token_id) == (0, None, 10)


def test_media_domains() -> None:
    def domains(flag: str) -> tuple[str, ...]:
        options = LaunchOptions(allow_media_domain=flag)
        return resolve(options, SeeingModel(), LAPTOP, system_seed=0).server.allowed_media_domains

    assert domains("Images.Example.org, cdn.example.org:8443,xn--bcher-kva.example,localhost") == (
        "images.example.org", "cdn.example.org:8443", "xn--bcher-kva.example", "localhost",
    )  # fmt: skip
    for wrong in ("https://example.org", "*.example.org", "bücher.example", ",", "example.org/", "a b", "user@host"):
        with pytest.raises(ConfigError, match="--allow-media-domain"):
            domains(wrong)
    with pytest.raises(ConfigError, match="no images are taken"):
        resolve(LaunchOptions(allow_media_domain="example.org"), Model(), LAPTOP, system_seed=0)


def test_graphs_are_for_gpus_and_as_large_as_asked() -> None:
    gpu = dataclasses.replace(LAPTOP, has_cuda=True)

    def most(machine: Machine, **options: Any) -> int:
        return resolve(LaunchOptions(**options), Model(), machine, system_seed=5).worker.cuda_graph_max_bs

    assert most(LAPTOP) == most(LAPTOP, disable_cuda_graph=True) == most(gpu, disable_cuda_graph=True) == 0
    assert (most(gpu), most(gpu, max_running_requests=512), most(gpu, max_running_requests=7)) == (256, 256, 7)
    assert most(gpu, cuda_graph_max_bs=64) == 64
    for machine, options, said in (
        (LAPTOP, {"cuda_graph_max_bs": 8}, "no CUDA graphs on a CPU"),
        (gpu, {"cuda_graph_max_bs": 8, "disable_cuda_graph": True}, "leave one of them out"),
        (gpu, {"cuda_graph_max_bs": 8, "max_running_requests": 4}, "only 4 requests run at once"),
    ):
        with pytest.raises(ConfigError, match=said):
            most(machine, **options)
