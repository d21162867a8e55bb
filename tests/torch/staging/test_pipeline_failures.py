"""What becomes of transfers when a device, its memory or the client fails."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from psum import client as psum
from psum.torch.staging import pipeline as pipelines
from psum.torch.staging.pipeline import Pipeline
from psum.torch.staging.request import Request
from tests.integration.conftest import Fleet
from tests.torch.staging.programs import LateThread, Program, Sum, let_one_go_on
from tests.torch.staging.stand_in import StandIn, StandInEvent


def test_a_device_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the value does not come, the operation is aborted for all ranks with the device's words, and ends once."""
    chance = random.Random(1)
    device = StandIn(chance)
    copying, waiting = LateThread(), LateThread()
    pipeline = Pipeline(device, lambda _: None, budget=1 << 20, copying=copying, waiting=waiting)
    stream = device.stream()
    value = np.zeros(5000, np.uint8)
    program = Program(device, stream, stream, value, gives=True, takes=True, reads=True)
    ticket = Sum([], fails=False)
    program.begin(pipeline, ticket)

    def fail(_: object) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(StandInEvent, "synchronize", fail)
    for thread in (copying, waiting, copying):
        let_one_go_on(thread)
    assert [str(error) for error in program.ends] == [ticket.reason]
    assert ticket.reason == (
        "the copy from the device of uint8 (5000,) on cpu failed: an illegal memory access was encountered"
    )
    assert pipeline.drain(0)


def carried_out(device: StandIn, arrived: Callable[[Any, Any], None] | None) -> tuple[Pipeline, list[Any]]:
    """Runs one transfer. Returns the pipeline, and what its `done` was called with."""
    copying, waiting = LateThread(), LateThread()
    pipeline = Pipeline(device, lambda _: None, budget=1 << 20, copying=copying, waiting=waiting)
    tensor, _ = device.tensor(50, torch.uint8, device.stream())
    started: list[Sum] = []
    ends: list[Any] = []
    ticket: Any = Sum(started, fails=False)
    pipeline.begin(Request(ticket, gives=True, takes=True, as_bytes=False, arrived=arrived), tensor, ends.append)
    for thread in (copying, waiting):
        let_one_go_on(thread)
    started[0].finish()
    let_one_go_on(copying)
    return pipeline, ends


def test_a_result_that_cannot_be_handed_over_is_an_error_at_once() -> None:
    """Who waits does not wait for a time-out. The error names the key and what failed."""

    def fail(_ticket: object, _array: object) -> None:
        raise RuntimeError("no counts")

    pipeline, ends = carried_out(StandIn(random.Random(1)), fail)
    assert [str(end) for end in ends] == [
        "the result of key 'w' arrived, and could not be handed over: RuntimeError: no counts"
    ]
    assert pipeline.drain(0)


def test_a_device_that_fails_at_the_end() -> None:
    """If the device fails when the result is there, who waits gets that error."""

    class Failing(StandIn):
        def record(self, stream: Any) -> Any:
            if stream is self.up and self.copied:
                self.copied = False
                raise RuntimeError("the device is gone")
            return super().record(stream)

        def keep(self, tensor: torch.Tensor, stream: Any) -> None:
            self.copied = True
            super().keep(tensor, stream)

        copied = False

    pipeline, ends = carried_out(Failing(random.Random(1)), None)
    assert [str(end) for end in ends] == ["the copy to the device of uint8 (50,) on cpu failed: the device is gone"]
    assert pipeline.drain(0)


def test_no_memory_for_a_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transfer for which there is no host memory fails, and the next one goes on."""
    device = StandIn(random.Random(1))
    copying, waiting = LateThread(), LateThread()
    pipeline = Pipeline(device, lambda _: None, budget=1 << 20, copying=copying, waiting=waiting)
    stream = device.stream()
    started: list[Sum] = []
    first, second = (
        Program(device, stream, stream, np.full(size, 2, np.uint8), gives=True, takes=True, reads=True)
        for size in (9000, 10)
    )
    with monkeypatch.context() as patched:
        patched.setattr(pipelines, "HostMemory", _no_memory)
        first.begin(pipeline, ticket := Sum(started, fails=False))
        let_one_go_on(copying)
    assert "Cannot allocate memory" in str(ticket.reason)
    second.begin(pipeline, Sum(started, fails=False))
    let_one_go_on(copying)
    let_one_go_on(waiting)
    started.pop().finish()
    let_one_go_on(copying)
    second.consume()
    device.finish()
    second.check()
    assert [str(error) for error in first.ends] == [ticket.reason]


def _no_memory(*_: object) -> None:
    raise OSError(12, "Cannot allocate memory")


def test_the_client_is_closed_meanwhile(fleet: Fleet) -> None:
    """Transfers end with an error, whether their sum was under way, their copy, or not even that."""
    device = StandIn(random.Random(1))
    copying, waiting = LateThread(), LateThread()
    stream = device.stream()
    with fleet.worker(0, 2, job="closed", staging=True) as client:
        # Memory for two of three.
        pipeline = Pipeline(device, client.allocate, budget=20_000, copying=copying, waiting=waiting)
        store = client.store()
        programs = []
        for key in ("sum", "copy", "queued"):
            program = Program(device, stream, stream, np.ones(8192, np.uint8), gives=True, takes=True, reads=True)
            program.begin(pipeline, store.reserve(key, shape=(8192,), element_type=psum.ElementType.UINT8))
            programs.append(program)
            let_one_go_on(copying)
            if key == "sum":
                let_one_go_on(waiting)
        client.close(timeout=0.1)
    while copying.work or waiting.work:
        let_one_go_on(copying if copying.work else waiting)
    assert pipeline.drain(0)
    assert [[type(error) for error in program.ends] for program in programs] == [[psum.ClosedError]] * 3
