"""Fixtures: real aggregators and real clients in one process, connected by real gRPC."""

import asyncio
import contextlib
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar
from unittest import mock

import pytest

from psum import client as psum
from psum.aggregator import Server, Settings
from psum.aggregator.service import stream
from psum.client.transport.loop_thread import LoopThread
from tests.integration.credential_files import Files
from tests.shared_memory import emptied_directory

T = TypeVar("T")

#: The longest time for any step of these tests.
PATIENCE_SECONDS = 30.0


def _close(close: Callable[[], None], closed: "asyncio.Future[None]") -> None:
    close()
    closed.set_result(None)


def _together(run: Callable[[int], T], ranks: int) -> list[T]:
    """Run something for each rank in a thread of its own. Return the results by rank."""
    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(run, range(ranks), timeout=PATIENCE_SECONDS))


class Fleet:
    """Aggregators on free ports, in a thread of their own.

    Attributes:
        addresses: The addresses on which they listen.
    """

    def __init__(self, settings: list[Settings]) -> None:
        self.thread = LoopThread("fleet")
        self.servers = [Server(s) for s in settings]
        try:
            for server in self.servers:
                self.thread.run(server.start(), PATIENCE_SECONDS)
        except BaseException:
            self.thread.stop()
            raise
        self.addresses = tuple(server.addresses[0] for server in self.servers)

    def worker(self, rank: int, num_workers: int, *, staging: bool = False, **settings: Any) -> psum.Client:
        """Return a client that has joined."""
        given = {"connect_timeout": PATIENCE_SECONDS, "round_timeout": PATIENCE_SECONDS} | settings
        given.setdefault("aggregators", self.addresses)
        given.setdefault("shm_directory", self.servers[0].settings.shm_directory)
        return psum.connect(psum.Settings(rank=rank, num_workers=num_workers, **given), staging=staging)

    def on_every_rank(self, num_workers: int, work: Callable[[psum.Client], T], **settings: Any) -> list[T]:
        """Join all ranks, do the work on each in its own thread, and return the results by rank."""
        return self.on_ranks([settings] * num_workers, work)

    def on_ranks(self, settings: Sequence[Mapping[str, Any]], work: Callable[[psum.Client], T]) -> list[T]:
        """Do the same with settings of each rank's own, as many as there are ranks."""

        def run(rank: int) -> T:
            with self.worker(rank, len(settings), **settings[rank]) as client:
                return work(client)

        return _together(run, len(settings))

    def failures(
        self, settings: Sequence[Mapping[str, Any]], work: Callable[[psum.Client], object]
    ) -> list[psum.PsumError]:
        """Do the same with work that must fail on all ranks. Return the errors, which may be those of joining."""

        def run(rank: int) -> psum.PsumError:
            with pytest.raises(psum.PsumError) as raised, self.worker(rank, len(settings), **settings[rank]) as client:
                work(client)
            return raised.value

        return _together(run, len(settings))

    def cut(self) -> None:
        """End the streams of all workers, as broken connections would: without waiting for what workers still send."""

        async def cut() -> None:
            ended: list[asyncio.Future[None]] = []
            for connection in (connection for server in self.servers for connection in server._service.connections):
                ended.append(asyncio.get_running_loop().create_future())
                connection.close = partial(_close, connection.close, ended[-1])  # type: ignore[method-assign]
                connection.finish()
            await asyncio.gather(*ended)

        with mock.patch.object(stream, "_LAST_MESSAGE_SECONDS", 0.0):
            self.thread.run(cut(), PATIENCE_SECONDS)

    @contextlib.contextmanager
    def cut_often(self, pause: float) -> Iterator[None]:
        """Cut again and again during the block. With short pauses, workers would mostly wait to try again.

        Args:
            pause: Seconds between two cuts.
        """
        over = threading.Event()

        def disturb() -> None:
            while not over.wait(pause):
                self.cut()

        disturbing = threading.Thread(target=disturb)
        disturbing.start()
        try:
            yield
        finally:
            over.set()
            disturbing.join()

    def restart(self, **settings: Any) -> None:
        """Stop the only aggregator without notice to workers. Start another at its address, with other settings."""
        self.cut()
        self.thread.run(self.servers[0].stop(0), PATIENCE_SECONDS)
        self.servers = [Server(Settings(listen=self.addresses, **settings))]
        self.thread.run(self.servers[0].start(), PATIENCE_SECONDS)

    def close(self) -> None:
        for server in self.servers:
            self.thread.run(server.stop(0.2), PATIENCE_SECONDS)
        self.thread.stop()


@pytest.fixture
def directory() -> Iterator[pathlib.Path]:
    """A directory in memory for this test. It must be empty after the test."""
    with emptied_directory() as made:
        yield made


@pytest.fixture
def files(tmp_path: pathlib.Path) -> Files:
    """The PEM files and token files of this test."""
    return Files(tmp_path)


@pytest.fixture
def make_fleet() -> Iterator[Callable[..., Fleet]]:
    """Starts a number of aggregators with the given settings."""
    with contextlib.ExitStack() as stack:

        def make(count: int = 1, **settings: Any) -> Fleet:
            fleet = Fleet([Settings(**{"listen": ("127.0.0.1:0",)} | settings) for _ in range(count)])
            stack.callback(fleet.close)
            return fleet

        yield make


@pytest.fixture
def fleet(make_fleet: Callable[..., Fleet]) -> Fleet:
    """One aggregator."""
    return make_fleet()


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    """After each test, no thread of a client or a fleet may be left."""
    yield
    left = [t.name for t in threading.enumerate() if t.name.startswith(("psum-client", "fleet"))]
    assert not left
