"""Elastic jobs between real clients and aggregators: who counts as alive, and what the API tells."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import numpy as np
import pytest

from psum import client as psum
from psum.aggregator import Server
from psum.aggregator.core.silence import Silence
from psum.client.transport import data_dialer
from psum.client.transport.data_dialer import DataConnectionError
from psum.client.transport.pauses import Pauses
from psum.planes import DataConnection
from tests.integration.conftest import PATIENCE_SECONDS, Fleet
from tests.integration.test_lending import lent_in_rounds
from tests.polling import wait_until

ELASTIC: Final = psum.Elastic(1, 2)

#: A short time after which a silent worker is lost.
TIMEOUT: Final = 0.8


def sums(client: psum.Client) -> float:
    """Sums something, and checks that all ranks have contributed."""
    value = np.ones(3, np.float32)
    future = client.store().push_pull_async("w", value)
    future.result(PATIENCE_SECONDS)
    assert future.contributors == ()
    return float(value[0])


def have_been_there(server: Server, workers: int) -> bool:
    """Whether so many workers have been in the only job for much longer than a silent one would be."""
    jobs = list(server._service.registry.jobs.values())
    now = time.monotonic()
    return len(jobs) == 1 and sum(now - worker.joined > 2.5 * TIMEOUT for worker in jobs[0].workers.values()) == workers


@pytest.fixture
def silence_of_all_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Aggregators do not doubt their own network, although all workers of these tests have nothing to send."""
    monkeypatch.setattr(Silence, "pass_time", lambda *_: None)


@pytest.mark.usefixtures("silence_of_all_counts")
@pytest.mark.parametrize("plane", ["inline", "direct", "shm"])
def test_a_worker_that_has_nothing_to_send_stays(make_fleet: Callable[..., Fleet], plane: str) -> None:
    """It sends empty messages, on its data connection if it has one."""
    fleet = make_fleet(elastic_timeout=TIMEOUT, elastic_closed_timeout=TIMEOUT)

    def work(client: psum.Client) -> float:
        wait_until(lambda: have_been_there(fleet.servers[0], 2))
        return sums(client)

    assert fleet.on_every_rank(2, work, elastic=ELASTIC, plane=plane) == [2, 2]


@pytest.mark.usefixtures("silence_of_all_counts")
def test_a_worker_that_does_not_know_yet_whether_it_has_a_data_connection_stays(
    make_fleet: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has joined, and waits for an answer on the data port for longer than until a silent worker is lost."""
    fleet = make_fleet(2, elastic_timeout=TIMEOUT, elastic_closed_timeout=TIMEOUT)

    async def never_answered(*_: object) -> DataConnection:
        await asyncio.sleep(2.5 * TIMEOUT)
        raise DataConnectionError("no answer")

    monkeypatch.setattr(data_dialer, "open_data_connection", never_answered)
    assert fleet.on_every_rank(2, sums, elastic=ELASTIC, plane="direct") == [2, 2]


def test_an_elastic_job_lends_no_sums(make_fleet: Callable[..., Fleet]) -> None:
    """Aggregators do not wait for a lost rank before they reuse the memory of a sum. It must not see the sum change."""
    fleet = make_fleet()
    lent = fleet.on_every_rank(2, lambda client: lent_in_rounds(client, 3), plane="shm", elastic=ELASTIC)
    assert lent == [[False] * 3] * 2


def test_a_worker_that_did_not_run_for_a_while_gets_its_sums_on_a_new_stream(
    make_fleet: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shared memory that it was told of may have the sums of other rounds by then."""
    fleet = make_fleet()
    first: list[Pauses] = []

    def noticed(pauses: Pauses) -> bool:
        first.append(pauses)
        return pauses is first[0]

    monkeypatch.setattr(Pauses, "noticed", property(noticed))

    def work(client: psum.Client) -> float:
        value = np.ones(1 << 18, np.float32)
        client.store().push_pull("w", value)
        assert (value == 2).all()
        return client.counters.reconnects

    assert sorted(fleet.on_every_rank(2, work, plane="shm", elastic=ELASTIC)) == [0, 1]


def test_ranks_must_agree_that_their_job_is_elastic(fleet: Fleet) -> None:
    """The error shows both sides."""
    with (
        fleet.worker(0, 2, elastic=ELASTIC),
        pytest.raises(psum.DisagreementError, match=r"PSUM_ELASTIC"),
    ):
        fleet.worker(1, 2)
