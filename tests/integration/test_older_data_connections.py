"""Data connections between this version and older ones, which do not announce what they do."""

from collections.abc import Callable
from typing import Any

import pytest

from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.service.plane_choice import PlaneChoice
from psum.aggregator.service.receiver import Receiver
from psum.client.transport import data_dialer
from psum.planes import DataConnection
from tests.integration.many_sizes import few_sums


def leave_out(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes aggregators welcome workers without a field, as older ones do."""
    choose = PlaneChoice.choose

    def choose_without(self: PlaneChoice, job: Any, hello: Any, connection: Any, welcome: Any, **given: Any) -> Any:
        chosen = choose(self, job, hello, connection, welcome, **given)
        welcome.ClearField(field)
        return chosen

    monkeypatch.setattr(PlaneChoice, "choose", choose_without)


def test_an_older_aggregator_does_not_answer(make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its welcome does not promise an answer, so the connection is used at once."""

    async def receive_first(_self: Receiver, connection: DataConnection) -> memoryview:
        return await connection.receive()

    monkeypatch.setattr(Receiver, "_first_on", receive_first)
    fleet = make_fleet(1)
    leave_out("data_answers", monkeypatch)
    inline = fleet.on_every_rank(2, few_sums, plane="inline", job="inline")
    assert fleet.on_every_rank(2, few_sums, plane="direct") == inline


def test_an_aggregator_of_a_version_before_does_not_say_that_the_data_connection_follows(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker does not wait for that."""

    def use_at_once(self: WorkerConnection) -> None:
        assert self._offered is not None
        self.data_connection = self._offered
        self.plane.connected(self._offered)

    leave_out("data_follows", monkeypatch)
    monkeypatch.setattr(WorkerConnection, "use_data_connection", use_at_once)
    fleet = make_fleet(1)
    inline = fleet.on_every_rank(2, few_sums, plane="inline", job="inline")
    assert fleet.on_every_rank(2, few_sums, plane="direct") == inline


@pytest.mark.parametrize("plane", ["direct", "shm"])
def test_an_older_worker_does_not_wait_for_an_answer(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, plane: str
) -> None:
    """It talks at once, and takes the answer for an empty message."""
    make = data_dialer._Attempt.make

    async def at_once(self: data_dialer._Attempt) -> DataConnection:
        self._welcome.ClearField("data_answers")
        return await make(self)

    monkeypatch.setattr(data_dialer._Attempt, "make", at_once)
    fleet = make_fleet(1)
    inline = fleet.on_every_rank(2, few_sums, plane="inline", job="inline")
    assert fleet.on_every_rank(2, few_sums, plane=plane) == inline
