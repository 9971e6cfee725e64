"""The loop around the scheduler: it waits for sockets, never for the clock."""

import threading
import time
from pathlib import Path
from typing import Any

import zmq

from slipstream.messages.queues import LocalQueue, ZmqInbox, ZmqOutbox
from slipstream.messages.sampling import SamplingParams
from slipstream.messages.to_scheduler import AddRequest, SlotResult, StepResult, ToScheduler, WorkerReady
from slipstream.messages.to_tokenizer import FromScheduler, TokenOutputs
from slipstream.messages.to_worker import Plan
from slipstream.scheduler.process import SchedulerLoop
from support.scheduler_harness import scheduler_config


def test_a_message_ends_the_wait_and_the_next_plan_leaves_in_the_same_turn(tmp_path: Path) -> None:
    context: zmq.Context[Any] = zmq.Context(1)
    inbox: ZmqInbox[ToScheduler] = ZmqInbox(context, f"ipc://{tmp_path}/in", ToScheduler)
    outbox: ZmqOutbox[ToScheduler] = ZmqOutbox(context, f"ipc://{tmp_path}/in", ToScheduler)
    plans: LocalQueue[Plan] = LocalQueue()
    outputs: LocalQueue[FromScheduler] = LocalQueue()
    loop = SchedulerLoop(scheduler_config(max_steps_in_flight=1), inbox, plans, outputs, strict=True)

    def turn_after(message: ToScheduler) -> None:
        threading.Timer(0.02, outbox.put, (message,)).start()
        started = time.monotonic()
        loop.turn(60.0)
        assert time.monotonic() - started < 10.0

    turn_after(WorkerReady(20, {}))
    turn_after(AddRequest("a", [1, 2, 3], [SamplingParams(max_new_tokens=2, seed=0)]))
    (plan,) = plans.drain()
    outputs.drain()
    turn_after(StepResult(plan.step, [SlotResult(plan.chunks[0].slot, [4])], 0.0))
    assert len(plans.drain()) == 1
    assert [len(message.outputs) for message in outputs.drain() if isinstance(message, TokenOutputs)] == [1]
    context.destroy(linger=0)
