"""Whatever the order in which streams, threads and psum go on, no transfer delivers wrong bytes."""

import contextlib
import functools
import gc
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psum import client as psum
from psum.torch.staging.background_thread import Worker
from psum.torch.staging.pipeline import Pipeline
from psum.torch.staging.request import Request
from tests.integration.conftest import Fleet
from tests.torch.staging.programs import LateThread, Program, Sum, let_one_go_on
from tests.torch.staging.stand_in import GARBAGE, Bytes, StandIn, StandInEvent, StandInStream


def run(seed: int, make: Callable[[random.Random], StandIn] = StandIn) -> None:
    """Runs transfers of many sizes in a random order, and checks that everybody sees the right bytes."""
    chance = random.Random(seed)
    device = make(chance)
    copying, waiting = LateThread(), LateThread()
    budget = chance.choice([4096, 20_000, 1 << 20])
    pipeline = Pipeline(device, lambda _: None, budget=budget, copying=copying, waiting=waiting)
    streams = [device.stream() for _ in range(3)]
    programs: list[Program] = []
    started: list[Sum] = []
    total = chance.randrange(2, 12)

    def begin() -> None:
        value = np.frombuffer(chance.randbytes(chance.choice([1, 50, 4097, 9000])), np.uint8)
        gives, takes, stands_in, doubles = chance.choice(
            [
                (True, True, False, False),
                (True, True, False, True),
                (True, False, False, False),
                (False, True, False, False),
                (False, True, True, False),
            ]
        )
        stream, consumer = chance.choice(streams), chance.choice(streams)
        reads = chance.random() < 0.8
        programs.append(
            Program(
                device,
                stream,
                consumer,
                value,
                gives=gives,
                takes=takes,
                reads=reads,
                stands_in=stands_in,
                doubles=doubles,
            )
        )
        programs[-1].begin(pipeline, Sum(started, fails=chance.random() < 0.05))

    def deliver() -> None:
        started.pop(chance.randrange(len(started))).finish()

    while True:
        choices: list[Callable[[], object]] = [program.consume for program in programs if program.may_consume]
        choices += [functools.partial(let_one_go_on, thread) for thread in (copying, waiting) if thread.work]
        choices += [deliver] if started else []
        choices += [begin] if len(programs) < total else []
        if not choices:
            break
        chance.choice(choices)()
        device.go_on()
    device.finish()
    for program in programs:
        program.check()
    assert pipeline.drain(0)
    for block in device.freed:
        assert (block.content == GARBAGE).all(), "a copy changed memory that had been freed"


@settings(max_examples=150)
@given(st.integers(0, 1 << 60))
def test_no_order_delivers_wrong_bytes(seed: int) -> None:
    """Every program sees its own result, each ends once, and memory is not touched after it was freed."""
    run(seed)


class Deaf(StandInStream):
    """A stream that waits for nothing."""

    def wait_event(self, event: Any) -> None:
        """Goes on at once."""


class WithoutOrder(StandIn):
    """A device with something missing that the pipeline relies on.

    Args:
        lack: What is missing.
    """

    def __init__(self, chance: random.Random, lack: str) -> None:
        super().__init__(chance)
        self.lack = lack
        if lack == "down":
            stream = Deaf(self)
            self._streams[self._streams.index(self.down)] = stream
            self.down = stream

    def use(self, stream: Any) -> Any:
        return contextlib.nullcontext() if self.lack == "use" and stream is self.up else super().use(stream)

    def keep(self, tensor: torch.Tensor, stream: Any) -> None:
        if self.lack != "keep" or stream is not self.up:
            super().keep(tensor, stream)

    def record(self, stream: Any) -> Any:
        event = super().record(stream)
        if self.lack == "synchronize":
            event.synchronize = lambda: None
        return event


@pytest.mark.parametrize("lack", ["down", "use", "keep", "synchronize"])
def test_what_is_missing_is_found(lack: str) -> None:
    """If one kind of wait were missing in the pipeline, the test before would fail: some order gives wrong bytes."""

    def run_many() -> None:
        for seed in range(300):
            run(seed, functools.partial(WithoutOrder, lack=lack))

    with pytest.raises(AssertionError):
        run_many()


def test_an_urgent_value_does_not_wait_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a thread has waited for a value, the operations of all values that have come meanwhile begin without another
    wait, the most urgent first. Each thread is asked once for all of them."""
    device = StandIn(random.Random(1))
    copying, waiting = LateThread(), LateThread()
    pipeline = Pipeline(device, lambda _: None, budget=1 << 20, copying=copying, waiting=waiting)
    stream = device.stream()
    started: list[Sum] = []
    tensors = [device.tensor(50, torch.uint8, stream)[0] for _ in range(5)]
    for tensor, priority in zip(tensors, (0, 1, 0, 7, 1), strict=True):
        ticket: Any = Sum(started, fails=False, priority=priority)
        pipeline.begin(Request(ticket, gives=True, takes=True, as_bytes=False), tensor, lambda _: None)
    assert len(copying.work) == 1
    let_one_go_on(copying)
    assert len(waiting.work) == 1
    waits = []

    def wait(event: StandInEvent) -> None:
        waits.append(event)
        device.finish()

    monkeypatch.setattr(StandInEvent, "query", lambda event: bool(waits))
    monkeypatch.setattr(StandInEvent, "synchronize", wait)
    let_one_go_on(waiting)
    assert [operation.priority for operation in started] == [7, 1, 1, 0, 0]
    assert len(waits) == 1
    for operation in started:
        operation.finish()
    assert len(copying.work) == 1
    let_one_go_on(copying)
    assert pipeline.drain(0)


def test_with_real_threads_and_aggregators(fleet: Fleet) -> None:
    """Two ranks sum many tensors from their devices. Aggregators read the copies where the devices put them, and the
    buffers serve one tensor after another."""
    # Too little for all tensors of a step at once.
    budget = 1_300_000

    def work(client: psum.Client) -> tuple[list[Bytes], int, StandIn]:
        device = StandIn(random.Random(client.rank))
        threads = Worker("psum-copies"), Worker("psum-waits")
        pipeline = Pipeline(device, client.allocate, budget=budget, copying=threads[0], waiting=threads[1])
        store = client.store()
        stream = device.stream()
        results = []
        allocated = []
        for step in range(3):
            programs = []
            for size in (1, 5000, 300_000, 700_000, 200_000):
                value = np.full(size, client.rank + step + 1, np.uint8)
                program = Program(device, stream, device.stream(), value, gives=True, takes=True, reads=True)
                programs.append(program)
                ticket = store.reserve(str(size), shape=(size,), element_type=psum.ElementType.UINT8)
                program.begin(pipeline, ticket)
            assert pipeline.drain(20)
            for program in programs:
                program.consume()
            device.finish()
            results += [program.seen[0] for program in programs]
            allocated.append(sum(device.pinned.values()))
        del pipeline
        for thread in threads:
            thread.stop()
        assert allocated[0] == allocated[-1]
        return results, allocated[-1], device

    def run_rank(rank: int) -> tuple[list[Bytes], int, StandIn]:
        with fleet.worker(rank, 2, job="pipeline", staging=True) as client:
            return work(client)

    with ThreadPoolExecutor(2) as pool:
        ranks = list(pool.map(run_rank, range(2), timeout=40))
    for number, sums in enumerate(zip(ranks[0][0], ranks[1][0], strict=True)):
        assert all((result == 2 * (number // 5) + 3).all() for result in sums)
    assert all(allocated <= budget for _, allocated, _ in ranks)
    gc.collect()
    assert not any(device.pinned for *_, device in ranks), "memory stays pinned after its pipeline"
