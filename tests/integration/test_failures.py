"""Failures are clear errors on every affected rank, and soon."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from tests.processes import running

#: How soon workers leave that have nothing to wait for. Each takes some milliseconds, on a busy machine more.
LEAVING_SECONDS = 1.0


def outcomes(futures: list["Future[None]"]) -> list[BaseException | None]:
    return [future.exception(10) for future in futures]


@pytest.mark.parametrize(
    ("values", "both_sides"),
    [
        ([np.ones(3, np.float32), np.ones(4, np.float32)], ["float32 (3,)", "float32 (4,)"]),
        ([np.ones((2, 3), np.float32), np.ones((3, 2), np.float32)], ["(2, 3)", "(3, 2)"]),
        ([np.ones(4, np.float32), np.ones(4, np.int32)], ["float32 (4,)", "int32 (4,)"]),
        ([np.ones(0, np.float32), np.ones(9, np.float32)], ["(0,)", "(9,)"]),
        ([np.ones(100_000, np.float32), np.ones(9, np.float32)], ["(100000,)", "(9,)"]),
    ],
    ids=["size", "shape", "type", "empty", "number of shards"],
)
def test_ranks_that_disagree_on_a_key_all_get_an_error_with_both_sides(
    make_fleet: Any, values: list[Any], both_sides: list[str]
) -> None:
    """The push-pull fails on every rank within seconds, and so does the next one on that key. Other keys work."""
    fleet = make_fleet(2)
    with (
        fleet.worker(0, 2, partition_bytes=1 << 14) as zero,
        fleet.worker(1, 2, partition_bytes=1 << 14) as one,
    ):
        stores = [zero.store(), one.store()]
        futures = [store.push_pull_async("w", value) for store, value in zip(stores, values, strict=True)]
        # A rank without a contribution of its own waits for no other rank.
        for future in [f for f, value in zip(futures, values, strict=True) if value.size]:
            error = future.exception(10)
            assert isinstance(error, psum.DisagreementError)
            assert all(side in str(error) for side in both_sides)
        futures = [store.push_pull_async("v", np.ones(3, np.float32)) for store in stores]
        assert outcomes(futures) == [None, None]
        for store, value in zip(stores, values, strict=True):
            with pytest.raises(psum.DisagreementError):
                store.push_pull("w", value)


@pytest.mark.parametrize(
    ("change", "both_sides"),
    [
        ({"num_workers": 3}, "rank 0 has 2, rank 1 has 3"),
        ({"partition_bytes": 4096}, "rank 0 has 2097152, rank 1 has 4096"),
    ],
)
def test_ranks_that_disagree_on_settings_all_get_an_error_with_both_sides(
    fleet: Any, change: dict[str, Any], both_sides: str
) -> None:
    """The worker that joined first fails in its next operation, the other one when it joins."""
    with fleet.worker(0, 2) as zero:
        future = zero.store().push_pull_async("w", np.ones(3, np.float32))
        with pytest.raises(psum.DisagreementError, match=both_sides):
            fleet.worker(**{"rank": 1, "num_workers": 2} | change)
        with pytest.raises(psum.DisagreementError, match=both_sides):
            raise future.exception(10) or AssertionError("no error")
        with pytest.raises(psum.DisagreementError):
            zero.store().push_pull("w", np.ones(3, np.float32))


def test_ranks_that_disagree_on_the_list_of_aggregators_get_an_error(make_fleet: Any) -> None:
    """Another order would assign shards to other aggregators."""
    fleet = make_fleet(2)
    with fleet.worker(0, 2) as zero:
        future = zero.store().push_pull_async("w", np.ones(3, np.float32))
        with pytest.raises(psum.DisagreementError, match="PSUM_AGGREGATORS"):
            fleet.worker(1, 2, aggregators=fleet.addresses[::-1])
        assert isinstance(future.exception(10), psum.DisagreementError)


def test_ranks_that_disagree_on_the_weights_get_an_error(make_fleet: Any) -> None:
    """Other ratios would also assign shards to other aggregators. [2, 2] would not."""
    fleet = make_fleet(2)
    with fleet.worker(0, 3) as zero, fleet.worker(1, 3, weights=(2, 2)):
        future = zero.store().push_pull_async("w", np.ones(3, np.float32))
        with pytest.raises(psum.DisagreementError, match=r"weights .*: rank 0 has \[\], rank 2 has \[2, 1\]"):
            fleet.worker(2, 3, weights=(2, 1))
        assert isinstance(future.exception(10), psum.DisagreementError)


def test_the_second_claim_on_a_rank_is_refused(fleet: Any) -> None:
    """The first worker is not affected."""
    with fleet.worker(0, 2) as zero, fleet.worker(1, 2) as one:
        with pytest.raises(psum.TakenError, match="this process is rank 1 of job 'default' already"):
            fleet.worker(1, 2)
        futures = [c.store().push_pull_async("w", np.ones(3, np.float32)) for c in (zero, one)]
        assert outcomes(futures) == [None, None]


def test_an_aggregator_that_is_not_there_is_named_with_the_cause(unused_tcp_port: int) -> None:
    """Joining fails after connect_timeout, with the address and gRPC's last error."""
    settings = psum.Settings(aggregators=(f"127.0.0.1:{unused_tcp_port}",), connect_timeout=0.7)
    with pytest.raises(psum.ConnectError, match=rf"127.0.0.1:{unused_tcp_port} within 0.7 s.*UNAVAILABLE") as caught:
        psum.connect(settings)
    assert caught.value.address == f"127.0.0.1:{unused_tcp_port}"


def test_something_else_at_the_address_is_named_with_the_cause() -> None:
    """A server that is not an aggregator is an error within connect_timeout, and so is one that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(psum.ConnectError, match=address):
            psum.connect(psum.Settings(aggregators=(address,), connect_timeout=0.7))


def test_a_worker_waits_for_aggregators_that_are_not_up_yet(
    make_fleet: Callable[..., Any], unused_tcp_port: int
) -> None:
    """Workers and aggregators may start in any order."""
    address = f"127.0.0.1:{unused_tcp_port}"
    clients: list[psum.Client] = []
    tried = threading.Thread(
        target=lambda: clients.append(psum.connect(psum.Settings(aggregators=(address,), connect_timeout=20)))
    )
    tried.start()
    tried.join(0.5)
    assert tried.is_alive()
    make_fleet(listen=(address,))
    tried.join(20)
    [client] = clients
    client.close()


def test_a_rank_that_cannot_contribute_fails_the_key_on_every_rank(fleet: Any) -> None:
    """An aborted operation is an error on all ranks, with the rank and the reason."""
    with fleet.worker(0, 2) as zero, fleet.worker(1, 2) as one:
        future = zero.store().push_pull_async("w", np.ones(3, np.float32))
        store = one.store()
        ticket = store.reserve("w", shape=(3,), element_type=psum.ElementType.FLOAT32)
        ticket.abort("its value failed: division by zero")
        with pytest.raises(psum.AbortedError, match=r"rank 1 .*'w' round 0: its value failed: division by zero"):
            raise future.exception(10) or AssertionError("no error")
        with pytest.raises(psum.AbortedError):
            store.push_pull("w", np.ones(3, np.float32))


def test_a_round_that_waits_too_long_fails_naming_the_missing_rank(make_fleet: Any) -> None:
    """round_timeout limits the wait for the slowest rank."""
    fleet = make_fleet(round_timeout=0.3)
    with fleet.worker(0, 2) as zero, fleet.worker(1, 2):
        future = zero.store().push_pull_async("w", np.ones(3, np.float32))
        with pytest.raises(psum.RoundTimeoutError, match=r"key 'w' round 0 has waited \d+\.\d s for rank 1"):
            raise future.exception(10) or AssertionError("no error")


def test_a_client_gives_up_by_itself_when_nobody_answers(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the aggregator does not even report the timeout, the client's own deadline ends the wait."""
    monkeypatch.setattr("psum.client.client_loop._EXPIRY_MARGIN_SECONDS", 0.0)
    with fleet.worker(0, 2, round_timeout=0.3) as zero:
        future = zero.store().push_pull_async("w", np.ones(3, np.float32))
        with pytest.raises(psum.RoundTimeoutError, match=rf"rank 0 has waited .* from {fleet.addresses[0]}"):
            raise future.exception(10) or AssertionError("no error")


WORKER = """
import sys, numpy as np
from psum import client as psum
client = psum.connect(psum.Settings(aggregators=tuple(sys.argv[1].split(",")), rank=1, num_workers=2))
client.store().push_pull("w", np.ones(3, np.float32))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_process(make_fleet: Any) -> Any:
    """A fleet with a short worker_timeout, rank 0 in this process, and rank 1 in another one that has summed once and
    waits."""
    fleet = make_fleet(2, worker_timeout=0.5)
    command = [sys.executable, "-c", WORKER, ",".join(fleet.addresses)]
    with (
        running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
        fleet.worker(0, 2) as zero,
    ):
        store = zero.store()
        store.push_pull("w", np.ones(3, np.float32))
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield fleet, store, process
        # Rank 0 does not wait for it when leaving.
        process.kill()


def test_a_worker_that_was_killed_fails_its_peers_by_name(other_process: Any) -> None:
    """After worker_timeout, the waiting operation and the next one fail with an error that names the rank."""
    fleet, store, process = other_process
    future = store.push_pull_async("w", np.ones(3, np.float32))
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(
        psum.WorkerLostError, match=rf"rank 1 of job 'default', .* pid {process.pid} .*vanished"
    ) as caught:
        raise future.exception(10) or AssertionError("no error")
    assert caught.value.ranks == (1,)
    with pytest.raises(psum.WorkerLostError):
        store.push_pull("v", np.ones(3, np.float32))
    # Each aggregator detects this by itself, the other one perhaps a moment later.
    deadline = time.monotonic() + 10
    while any(job.held_bytes for address in fleet.addresses for job in psum.fetch_status(address).jobs):
        assert time.monotonic() < deadline


def test_a_worker_that_left_fails_those_who_still_need_it(other_process: Any) -> None:
    """A rank that leaves during the others' rounds is reported at once."""
    _, store, process = other_process
    future = store.push_pull_async("w", np.ones(3, np.float32))
    process.stdin.close()
    assert process.wait(20) == 0
    with pytest.raises(psum.WorkerLostError, match=r"rank 1 .* has left job 'default' without contributing to key 'w'"):
        raise future.exception(10) or AssertionError("no error")


def test_an_aggregator_that_goes_away_fails_its_operations_by_name(make_fleet: Any) -> None:
    """The error of the waiting operation and of the next one names the aggregator."""
    fleet = make_fleet()
    with fleet.worker(0, 2, reconnect_timeout=0.5) as zero:
        store = zero.store()
        future = store.push_pull_async("w", np.ones(3, np.float32))
        fleet.thread.run(fleet.servers[0].stop(0), 10)
        with pytest.raises(psum.AggregatorLostError, match=f"aggregator {fleet.addresses[0]}"):
            raise future.exception(10) or AssertionError("no error")
        with pytest.raises(psum.AggregatorLostError):
            store.push_pull("v", np.ones(3, np.float32))


def test_an_aggregator_logs_few_of_the_keys_that_fail_for_one_reason(
    make_fleet: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A network has hundreds of keys. The first are logged, then a hint. Each key still fails by name."""
    fleet = make_fleet(round_timeout=0.3)
    with fleet.worker(0, 2) as zero:
        store = zero.store()
        errors = outcomes([store.push_pull_async(f"w{i}", np.ones(3, np.float32)) for i in range(20)])
    assert all(f"key 'w{i}'" in str(error) for i, error in enumerate(errors))
    logged = [record.message for record in caplog.records if "longer than the round timeout" in record.message]
    assert len(logged) == 3
    assert "other keys that fail likewise" in logged[-1]


def test_closing_a_client_fails_what_is_outstanding(fleet: Any) -> None:
    """close waits for its timeout. After that, no operation waits."""
    zero = fleet.worker(0, 2)
    store = zero.store()
    future = store.push_pull_async("w", np.ones(3, np.float32))
    zero.close(timeout=0.1)
    assert isinstance(future.exception(1), psum.ClosedError)
    with pytest.raises(psum.ClosedError):
        store.push_pull("w", np.ones(3, np.float32))
    zero.close()


def test_a_forked_child_is_told_that_it_cannot_use_the_client(fleet: Any) -> None:
    """The child gets an error instead of a hang, and the parent's connection is not affected."""
    with fleet.worker(0, 1) as client:
        store = client.store()
        store.push_pull("w", np.ones(3, np.float32))
        pid = os.fork()
        if pid == 0:
            try:
                store.push_pull("w", np.ones(3, np.float32))
            except psum.ForkedError:
                os._exit(42)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
        store.push_pull("w", np.ones(3, np.float32))


@pytest.mark.parametrize("key", [1.5, None, True, b"w", ("a",)])
def test_keys_of_other_types_are_refused(key: Any) -> None:
    """A key is a str or an int."""
    with psum.connect(psum.Settings()) as client, pytest.raises(TypeError, match="a key is a str or an int"):
        client.store().push_pull(key, np.ones(3, np.float32))


def test_arguments_that_do_not_fit_are_refused_at_the_call() -> None:
    """`out` must have the shape and type of `value`, and a key keeps its shape and type."""
    with psum.connect(psum.Settings()) as client:
        store = client.store()
        with pytest.raises(ValueError, match=r"value is float32 \(3,\), out is float32 \(4,\)"):
            store.push_pull("w", np.ones(3, np.float32), np.ones(4, np.float32))
        store.push_pull("w", np.ones(3, np.float32))
        with pytest.raises(
            ValueError, match=r"key 'w' was a pushpull of float32 \(3,\) before, and is float64 \(3,\) now"
        ):
            store.push_pull("w", np.ones(3, np.float64))


def test_a_worker_hears_for_whom_it_waits_before_anything_fails(
    make_fleet: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Its log names the key, the round, and the slow rank with its host. The aggregator's log does too."""
    fleet = make_fleet(warn_after=0.1)
    with fleet.worker(0, 2) as zero, fleet.worker(1, 2) as one:
        future = zero.store().push_pull_async("w", np.ones(3, np.float32))
        with pytest.raises(TimeoutError):
            future.result(1)
        one.store().push_pull("w", np.ones(3, np.float32))
        future.result(10)
    for side in ("psum.client", "psum.aggregator"):
        texts = [record.getMessage() for record in caplog.records if record.name.startswith(side)]
        assert any("key 'w' round 0 waits for rank 1 (" in text for text in texts)


def test_a_worker_says_that_it_waits_for_an_aggregator(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has the address, the timeout and the last attempt's error. It repeats this when the wait has doubled."""
    monkeypatch.setattr("psum.client.transport.connect_problem._PATIENCE_SECONDS", 0.2)
    with pytest.raises(psum.ConnectError):
        psum.connect(psum.Settings(aggregators=("127.0.0.1:1",), connect_timeout=1.0))
    # After 0.2 s, 0.4 s and 0.8 s, unless an attempt takes longer.
    assert 1 <= len(caplog.records) <= 3
    [text] = {record.getMessage() for record in caplog.records}
    assert text.startswith("rank 0 waits for aggregator 127.0.0.1:1, for up to 1 s (PSUM_CONNECT_TIMEOUT): UNAVAILABLE")


@pytest.mark.parametrize(
    ("priority", "error", "text"),
    [("high", TypeError, "str"), (1.5, TypeError, "float"), (1 << 63, ValueError, "9223372036854775808; expected")],
)
def test_a_priority_that_cannot_be_used_is_refused_at_the_call(
    fleet: Any, priority: Any, error: type[Exception], text: str
) -> None:
    """The client still works afterwards."""
    with fleet.worker(0, 1) as client:
        store = client.store()
        with pytest.raises(error, match=text):
            store.push_pull("w", np.ones(3, np.float32), priority=priority)
        store.push_pull("w", np.ones(3, np.float32), priority=-(1 << 63))


@pytest.mark.parametrize("aggregators", [0, 1])
def test_a_closed_client_says_that_it_was_closed(make_fleet: Any, aggregators: int) -> None:
    """The error does not say that an operation was interrupted."""
    settings = psum.Settings(aggregators=make_fleet().addresses if aggregators else ())
    with psum.connect(settings) as client:
        store = client.store()
    with pytest.raises(psum.ClosedError, match="this client was closed"):
        store.push_pull("w", np.ones(3, np.float32))


def test_proxies_of_the_environment_are_left_aside(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients connect directly to aggregators even if http_proxy is set, as on many companies' machines."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("no_grpc_proxy", raising=False)
        with fleet.worker(0, 1, connect_timeout=5.0):
            assert [job.name for job in psum.fetch_status(fleet.addresses[0]).jobs] == ["default"]


def test_a_worker_whose_peer_was_ended_leaves_at_once(make_fleet: Callable[..., Any]) -> None:
    """Each aggregator tells it that the job has failed, and waits for it to end the stream."""
    fleet = make_fleet(3)
    zero, one, two = (fleet.worker(rank, 3) for rank in range(3))
    with zero, one, two:
        stores = [client.store() for client in (zero, one, two)]
        # A rank that had taken part in nothing would leave its place to another process.
        assert outcomes([store.push_pull_async("w", np.ones(3, np.float32)) for store in stores]) == [None] * 3
        futures = [store.push_pull_async("w", np.ones(3, np.float32)) for store in stores[:2]]
        parted = two.part(psum.WorkerLostError("rank 2 was ended", ranks=[2]))
        assert parted is not None
        parted.result(10)
        for future in futures:
            with pytest.raises(psum.WorkerLostError, match="rank 2 was ended"):
                raise future.exception(10) or AssertionError("no error")
        begin = time.monotonic()
        for client in (zero, one):
            client.close()
        assert time.monotonic() - begin < LEAVING_SECONDS
