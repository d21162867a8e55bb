"""The operations that a client has not reported as done."""

import numpy as np

from psum.client import Operation, PsumError
from psum.client.core.session import Session
from psum.client.outstanding import OutstandingOperations
from psum.client.transport.loop_thread import LoopThread
from psum.wire import ElementType


class Detaching(OutstandingOperations):
    """Another thread closes the client after `add` has looked whether there is a thread."""

    @property
    def _scheduled(self) -> bool:
        self.detach()
        return False

    @_scheduled.setter
    def _scheduled(self, scheduled: bool) -> None:
        pass


def test_an_operation_that_is_started_while_the_client_is_closed_ends_as_others_do() -> None:
    """Its caller, which may be MXNet's engine, gets no exception, and its callback is called."""
    thread = LoopThread("closed")
    session = Session(
        (), (), rank=0, partition_bytes=1, credit_bytes=1, hand_over=lambda ticket: outstanding.add(ticket)
    )
    outstanding: OutstandingOperations = Detaching(session, thread, lambda: outstanding.report())
    thread.stop()
    ended: list[PsumError | None] = []
    value = np.ones(3)
    ticket = session.reserve(0, "w", value.shape, ElementType.FLOAT64, Operation.SUM, 0)
    ticket.start(value, value, ended.append)
    assert ended == [None]
    assert not outstanding.count
