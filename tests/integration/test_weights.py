"""Ranks agree on the weights of aggregators by what runs on their hosts."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from psum.client.membership import Membership


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[int, Sequence[int]]], None]:
    """Pretends that ranks run on hosts of their own, each with some of the aggregators."""

    def pretend(beside: Mapping[int, Sequence[int]]) -> None:
        async def own(membership: Membership) -> frozenset[int]:
            return frozenset(beside.get(membership._settings.rank, ()))

        monkeypatch.setattr("psum.client.fleet.is_local", lambda address: False)
        monkeypatch.setattr("psum.client.membership.Membership._own_aggregators", own)

    return pretend


def sums(fleet: Any, num_workers: int) -> list[int]:
    """The payload bytes that each aggregator receives when every rank sums a large tensor."""

    def work(client: psum.Client) -> None:
        value = np.full(1 << 20, client.rank + 1, np.float32)
        client.store().push_pull("w", value)
        assert (value == num_workers * (num_workers + 1) / 2).all()

    fleet.on_every_rank(num_workers, work)
    return [server._service.registry.counters.items()[0][1].sum.received_bytes for server in fleet.servers]


def test_dedicated_aggregators_take_what_suits_their_links(make_fleet: Any, hosts: Any) -> None:
    """Three hosts with an aggregator each, and a dedicated one: it takes two fifths of the bytes."""
    hosts({0: [0], 1: [1], 2: [2]})
    received = sums(make_fleet(4), 3)
    assert [round(each / sum(received), 2) for each in received] == [0.2, 0.2, 0.2, 0.4]


def test_an_aggregator_that_suits_no_share_owns_nothing(make_fleet: Any, hosts: Any) -> None:
    """Two hosts with an aggregator each have full links, whatever a third aggregator does. It is idle."""
    hosts({0: [1], 1: [2]})
    received = sums(make_fleet(3), 2)
    assert [round(each / sum(received), 2) for each in received] == [0, 0.5, 0.5]


def test_aggregators_of_unknown_role_take_equal_shares(make_fleet: Any, hosts: Any) -> None:
    """As in pods, where no worker finds an aggregator's address on its own host."""
    hosts({})
    received = sums(make_fleet(2), 2)
    assert [round(each / sum(received), 2) for each in received] == [0.5, 0.5]


def test_explicit_weights_win(make_fleet: Any, hosts: Any) -> None:
    """Ranks with explicit weights agree on nothing else. A rank that leaves the weights to the roles is told so."""
    hosts({0: [0], 1: [1]})
    fleet = make_fleet(3)
    text = r"WEIGHTS\): rank 0 has \[1, 1, 1\], rank 1 has auto\."
    with fleet.worker(0, 2, weights=(1, 1, 1)), pytest.raises(psum.DisagreementError, match=text):
        fleet.worker(1, 2)


def test_a_rank_that_does_not_begin_is_named(make_fleet: Any, hosts: Any) -> None:
    """The others wait for its report first. The error names it, and all that waits for the weights fails."""
    hosts({0: [0]})
    fleet = make_fleet(2, round_timeout=0.3)
    with fleet.worker(0, 2) as zero, fleet.worker(1, 2):
        futures = [zero.store().push_pull_async(key, np.ones(3, np.float32)) for key in ("a", "b")]
        for future in futures:
            error = future.exception(10)
            assert isinstance(error, psum.RoundTimeoutError)
            assert error.ranks == (1,)
            assert "aggregators beside workers" in str(error)


def test_the_agreement_survives_broken_connections(make_fleet: Any, hosts: Any) -> None:
    """The report is sent again like any contribution. A rank that begins afterwards agrees with the others."""
    hosts({0: [0], 1: [0, 1]})
    fleet = make_fleet(2)
    with fleet.worker(0, 2) as zero, fleet.worker(1, 2) as one:
        first = zero.store().push_pull_async("w", np.full(1 << 16, 1, np.float32))
        waiting = threading.Event()
        zero._thread.call(waiting.set)
        assert waiting.wait(10)
        fleet.cut()
        value = np.full(1 << 16, 2, np.float32)
        one.store().push_pull("w", value)
        first.result(10)
        assert (value == 3).all()


def test_workers_that_share_a_relay_count_once(make_fleet: Any, hosts: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A host of three workers and two hosts of two have equal shares: each host's link carries each byte once. The
    reports pass the relays like any sum."""
    fleet = make_fleet(4)
    workers = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1)]
    hosts({rank: [host] for rank, (host, _) in enumerate(workers)})
    sizes = Counter(host for host, _ in workers)
    caplog.set_level("INFO", logger="psum.client.core.weights_agreement")

    def work(rank: int) -> float:
        host, local = workers[rank]
        own = {"relay": fleet.addresses[host], "local_rank": local, "local_size": sizes[host]}
        with fleet.worker(rank, len(workers), **own) as client:
            value = np.full(1 << 16, rank, np.float32)
            client.store().push_pull("w", value)
            return float(value[0])

    with ThreadPoolExecutor(len(workers)) as pool:
        assert list(pool.map(work, range(len(workers)))) == [21.0] * 7
    agreed = [record.args for record in caplog.records if record.name == "psum.client.core.weights_agreement"]
    assert agreed == [("1,1,1,2",)] * 7
