"""The worker's process: what it tells the server, and one result for each plan in order."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from slipstream.config.options import LaunchOptions
from slipstream.errors import CheckpointError
from slipstream.launch.prepare import prepare
from slipstream.messages.queues import LocalQueue
from slipstream.messages.to_scheduler import StepResult, WorkerReady
from slipstream.messages.to_server import ChildStatus, Progress, Stage
from slipstream.messages.to_worker import NewRequest, Plan, PrefillChunk
from slipstream.worker.process import load_worker as load_in_process
from slipstream.worker.process import run
from slipstream.worker.threads import count_physical_cores, threads_for_step, usable_cores
from support.checkpoints import reference_model, write_native
from support.running_worker import GREEDY, Driver, load_worker, worker_config


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_two_queued_plans_give_two_results(tmp_path: Path) -> None:
    folder = write_native(tmp_path, reference_model())
    plans: LocalQueue[Plan] = LocalQueue()
    results: LocalQueue[WorkerReady | StepResult] = LocalQueue()
    statuses: LocalQueue[ChildStatus] = LocalQueue()
    stopped = threading.Event()
    # both are there before the worker looks: the second continues from a token that the first samples
    plans.put(Plan(step=1, new=[NewRequest(0, [1, 2, 3], 3, GREEDY, [1, 2], 0)], chunks=[PrefillChunk(0, 0, 3, True)]))
    plans.put(Plan(step=2, decode=[0]))
    thread = threading.Thread(target=run, args=(worker_config(folder), plans, results, statuses, stopped.is_set))
    thread.start()
    received: list[WorkerReady | StepResult] = []
    while len(received) < 3 and results.wait(30):
        received += results.drain()
    stopped.set()
    thread.join(10)
    assert not thread.is_alive()
    ready, *steps = received
    assert isinstance(ready, WorkerReady) and ready.num_pages == 257
    tokens = [result.results[0].token_ids[0] for result in steps if isinstance(result, StepResult)]
    assert tokens == Driver(load_worker(folder)).generate(0, [1, 2, 3], [1, 2], 2)
    first, *others = statuses.drain()
    assert isinstance(first, Stage) and str(folder) in first.text
    progress = [message for message in others if isinstance(message, Progress)]
    assert (progress[-1].done, progress[-1].total) == (30, 30)
    assert "--max-total-tokens 1024" in ready.info["num_pages_reason"]


def test_progress_says_whose_tensors_are_loaded() -> None:
    options = LaunchOptions(load_format="dummy", max_total_tokens=2048, device="cpu")  # the pair that ships
    statuses: LocalQueue[ChildStatus] = LocalQueue()
    load_in_process(prepare(options).resolved.worker, statuses)
    progress = [message for message in statuses.drain() if isinstance(message, Progress)]
    ends = [(message.text, message.total) for message in progress if message.done == message.total]
    assert [text for text, _ in ends] == ["loading tensors", "loading the draft's tensors"]
    assert {(message.text, message.total) for message in progress} == set(ends) and ends[0][1] > ends[1][1]


def test_errors_of_loading_reach_the_caller(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="files seen: none"):
        run(worker_config(tmp_path), LocalQueue(), LocalQueue(), LocalQueue(), lambda: False)


def test_small_steps_run_on_one_thread_and_large_ones_on_all_cores() -> None:
    assert threads_for_step(num_rows=16, parameters_per_layer=480_000, num_cores=4) == 1
    assert threads_for_step(num_rows=512, parameters_per_layer=480_000, num_cores=4) == 4
    assert threads_for_step(num_rows=1, parameters_per_layer=220_000_000, num_cores=4) == 4, "7B: memory bound"


def test_two_threads_of_one_core_count_once() -> None:
    blocks = [f"processor\t: {cpu}\nphysical id\t: {cpu // 4}\ncore id\t\t: {cpu // 2 % 2}" for cpu in range(8)]
    cpuinfo = "\n\n".join(blocks) + "\n"
    assert count_physical_cores(cpuinfo, set(range(8))) == 4
    assert count_physical_cores(cpuinfo, {0, 1, 4}) == 2
    assert count_physical_cores("", {0, 1, 4}) == 3
    assert usable_cores() >= 1
