"""Processes that wait to join an elastic job, and get no further."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from psum.client.future import wait_for
from psum.v1 import aggregator_pb2 as pb
from tests.polling import wait_until

ELASTIC = psum.Elastic(1, 3)


def test_it_can_leave_while_it_waits(make_fleet: Callable[..., Any]) -> None:
    """Its operations are complete at once, and closing it waits for nobody. The members hear that it is gone."""
    fleet = make_fleet(2)
    with fleet.worker(0, 1, elastic=ELASTIC) as member:
        total = np.full(4, 2.0)
        member.store().push_pull("a", total)
        candidates = member.link._session.joins.admissions
        with fleet.worker(2, 1, elastic=ELASTIC) as candidate:
            assert candidate.waits_for_admission
            value = np.full(4, 3.0)
            future = candidate.store().push_pull_async("a", value)
            future.result()
            # One rank, of a job that begins with one: that is all of them.
            assert future.contributors == ()
            assert value.tolist() == [3.0] * 4
            assert wait_for(lambda: candidates.candidate is not None, 10.0)
            assert candidates.candidate.rank == 2
        assert wait_for(lambda: candidates.candidate is None, 10.0)
        state = psum.ElasticState(member, batch=0)
        state.step()
        assert state.members == (0,)


def test_one_that_does_not_fit_is_refused(fleet: Any) -> None:
    """Its ElasticState says why, and so does each of its operations."""
    with fleet.worker(0, 1, elastic=ELASTIC) as member:
        member.store().push_pull("a", np.zeros(4))
        with fleet.worker(1, 1, elastic=ELASTIC, partition_bytes=1 << 16) as candidate:
            with pytest.raises(psum.DisagreementError, match="partition"):
                psum.ElasticState(candidate, batch=0)
            with pytest.raises(psum.DisagreementError, match="partition"):
                candidate.store().push_pull("a", np.zeros(4))


def test_a_member_that_ends_does_not_wait_for_the_next_boundary(fleet: Any) -> None:
    """The others may have other things to do before they end, and sum nothing."""
    closed = threading.Event()

    def work(rank: int) -> float:
        client = fleet.worker(rank, 2, elastic=ELASTIC)
        state = psum.ElasticState(client, batch=0)
        for _ in range(2):
            state.step()
        if rank == 0:
            assert closed.wait(20.0)
        began = time.monotonic()
        client.close(timeout=10.0)
        closed.set()
        return time.monotonic() - began

    with ThreadPoolExecutor(2) as pool:
        assert max(pool.map(work, range(2))) < 5.0


def test_one_that_is_lost_before_it_is_let_in_asks_again_as_another_process(fleet: Any) -> None:
    """It has taken part in nothing yet. After five times it says why."""
    jobs = fleet.servers[0]._service.registries.fleet.jobs
    with fleet.worker(0, 2, elastic=ELASTIC) as first, fleet.worker(1, 2, elastic=ELASTIC):
        first.store()
        joins, admissions = first.link._session.joins, jobs["default"].members.admissions

        def is_admitted(process: Any) -> bool:
            return 2 in admissions and bool(admissions[2].incarnation == process.incarnation)

        with fleet.worker(2, 2, elastic=ELASTIC) as candidate:
            seen: set[Any] = set()
            for generation in range(5):
                assert wait_for(lambda: joins.admissions.candidate not in {None, *seen}, 10.0)
                seen.add(process := joins.admissions.candidate)
                assert first.link.admit(process) == generation
                wait_until(partial(is_admitted, process))
                loss = pb.Loss(rank=2, generation=generation, text="its relay was lost")
                first.link._in_thread(partial(joins.note_losses, [loss], time.monotonic()))
            with pytest.raises(psum.ExcludedError, match=r"its relay was lost.* asked to join 5 times"):
                psum.ElasticState(candidate, batch=0)
