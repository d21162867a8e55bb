"""A client completes every operation, whatever interrupts it."""

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

import psum.client as psum
from psum.aggregator import Server
from psum.aggregator import Settings as AggregatorSettings
from psum.client.transport.loop_thread import LoopThread


@pytest.fixture
def address() -> Iterator[str]:
    """Where an aggregator listens."""
    thread = LoopThread("aggregator")

    async def start() -> Server:
        server = Server(AggregatorSettings(listen=("127.0.0.1:0",)))
        await server.start()
        return server

    server = thread.run(start(), 10)
    yield server.addresses[0]
    thread.run(server.stop(0.1), 10)
    thread.stop()


def connect(address: str, **settings: Any) -> psum.Client:
    return psum.connect(psum.Settings(aggregators=(address,), num_workers=2, job="night", **settings))


@pytest.mark.parametrize("problem", [KeyboardInterrupt, TimeoutError])
def test_a_close_that_is_cut_short_completes_what_is_outstanding(
    address: str, problem: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a client waits for the answer to its goodbye leaves no future uncompleted."""
    client = connect(address)
    future = client.store().push_pull_async("w", np.ones(3))

    def cut_short(coroutine: Any, timeout: float | None = None) -> None:
        coroutine.close()
        raise problem

    monkeypatch.setattr(client._thread, "run", cut_short)
    with pytest.raises(problem):
        client.close(timeout=0.1)
    with pytest.raises(psum.ClosedError):
        future.result(timeout=5)


def test_what_is_handed_over_while_the_thread_ends_is_completed(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation that comes after the thread has emptied the inbox for the last time fails as others do."""
    client = connect(address)
    store = client.store()
    futures = []
    stop = client._thread.stop  # type: ignore[union-attr]

    def stop_with_a_latecomer() -> None:
        # The thread was told to empty the inbox and ends before it does so.
        lifecycle, outstanding = client._lifecycle, client._outstanding
        lifecycle.closed = False
        outstanding._thread, outstanding._scheduled = client._thread, True
        futures.append(store.push_pull_async("w", np.ones(3)))
        lifecycle.closed, outstanding._thread = True, None
        stop()

    monkeypatch.setattr(client._thread, "stop", stop_with_a_latecomer)
    client.close(timeout=1)
    with pytest.raises(psum.ClosedError):
        futures[0].result(timeout=5)


def test_an_operation_that_cannot_be_begun_fails(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug on the way from the inbox to the scheduler ends the operation, with the client."""
    client = connect(address)
    store = client.store()

    def broken(_key: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(client._session._operations, "_declare", broken)
    with pytest.raises(psum.PsumError, match="could not be begun"):
        store.push_pull_async("w", np.ones(3)).result(timeout=5)
    assert client.drain(timeout=5)
    client.close()


@pytest.mark.parametrize("priority", [2**63, -(2**63) - 1])
def test_a_priority_that_the_wire_has_no_place_for_is_refused_where_it_is_given(address: str, priority: int) -> None:
    """A wrong priority is the caller's mistake. It ends neither the client nor other operations."""
    with connect(address) as client:
        store = client.store()
        with pytest.raises(ValueError, match="a priority of"):
            store.push_pull_async("w", np.ones(3), priority=priority)
        with pytest.raises(TypeError):
            store.push_pull_async("w", np.ones(3), priority=0.5)  # type: ignore[arg-type]
        assert client._session.failure is None


def test_operations_behind_one_that_was_never_started_fail_in_time(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an interrupt between reservation and start, later operations on the key time out."""
    monkeypatch.setattr("psum.client.client_loop._EXPIRY_MARGIN_SECONDS", 0.0)
    with connect(address, round_timeout=0.5) as client:
        store = client.store()
        store.reserve("w", shape=(3,), element_type=psum.ElementType.FLOAT64)
        with pytest.raises(psum.RoundTimeoutError, match="round 0 was reserved before it"):
            store.push_pull_async("w", np.ones(3)).result(timeout=10)


@pytest.mark.parametrize("wait", ["close", "drain", "push_pull", "broadcast"])
def test_a_callback_cannot_wait_for_what_only_its_own_thread_brings(address: str, wait: str) -> None:
    """Such a callback gets an error instead of a deadlock, and other operations go on."""
    with psum.connect(psum.Settings(aggregators=(address,))) as client:
        store = client.store()
        told: Future[None] = Future()

        def callback() -> None:
            try:
                match wait:
                    case "close":
                        client.close()
                    case "drain":
                        client.drain()
                    case "push_pull":
                        store.push_pull("v", np.ones(3))
                    case "broadcast":
                        store.broadcast("v", np.ones(3))
            except RuntimeError as error:
                told.set_exception(error)

        assert client._thread is not None
        # Where callbacks run.
        client._thread.call(callback)
        with pytest.raises(RuntimeError, match="a callback of an operation called this"):
            told.result(5)
        store.push_pull("w", np.ones(3))


def test_what_starts_with_the_next_operation_starts_with_it() -> None:
    """Once, and not before, unless it is wanted. A client that is closed drops it: the others may never begin it."""
    started: list[int] = []
    with psum.connect(psum.Settings()) as client:
        client.start_with_next(lambda: started.append(1))
        client.drain()
        assert started == []
        for _ in range(2):
            client.store().push_pull("a", np.zeros(1))
            assert started == [1]
        client.start_with_next(lambda: started.append(2))
        client.start_upcoming()
        assert started == [1, 2]
        client.start_with_next(lambda: started.append(3))
    assert started == [1, 2]
