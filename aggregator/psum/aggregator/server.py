"""One aggregator process: its event loop, its addresses, and its signals."""

import asyncio
import contextlib
import gc
import logging
import os
import pathlib
import signal
import socket
import stat
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import grpc.aio
import uvloop

from psum.aggregator.access.handshakes import Handshakes
from psum.aggregator.access.tls import ServerTls
from psum.aggregator.announcement import announce as write_announcement
from psum.aggregator.core.budget import Budget
from psum.aggregator.observe.health import Health
from psum.aggregator.observe.logging import set_up_logging
from psum.aggregator.observe.loop_monitor import LoopMonitor
from psum.aggregator.observe.process_view import ProcessView
from psum.aggregator.observe.throughput import Throughput
from psum.aggregator.parent import Parent
from psum.aggregator.service.data_port import DataPort
from psum.aggregator.service.service import Service
from psum.aggregator.settings import Settings
from psum.runtime import (
    cannot_listen,
    keep_large_blocks,
    lacks_descriptors,
    listen_error,
    open_descriptors,
    raise_descriptor_limit,
)
from psum.wire import grpc_options
from psum.wire.errors import ConfigurationError

if TYPE_CHECKING:
    from psum.aggregator.observe.http import Http

_log = logging.getLogger(__name__)

#: How often the gRPC server is checked for an unexpected end, and how often listening is then tried again.
_WATCH_SECONDS: Final = 0.2

#: The grace period for open streams of a server that has ended: no limit.
_NO_LIMIT_SECONDS: Final = 10.0**9

#: A connection without a call for this long is closed.
_IDLE_SECONDS: Final = 60

#: The most calls on one connection. A worker makes one call, but a proxy may forward several workers on one connection.
_CALLS_PER_CONNECTION: Final = 1024

#: The descriptors that an aggregator needs for itself, with the least reserve (see descriptor_budget.py).
_OWN_DESCRIPTORS: Final = 32

#: The garbage collector runs each time this many more objects have been allocated than freed.
_COLLECT_AFTER: Final = 10_000


class Server:
    """An aggregator that serves on the running event loop, between `start` and `stop`.

    Args:
        settings: The settings of this process.
        processes: Of each process of the aggregator its addresses, if this is the first one of several.
        budget: The memory for sums, if it is shared with other processes.

    Attributes:
        addresses: Where it listens, with the ports that were bound; empty before it was started.
        http_address: The same for HTTP; empty if HTTP is off.
        view: What operators see of it, once it was started.
    """

    view: ProcessView

    def __init__(
        self, settings: Settings, *, processes: Sequence[Sequence[str]] = (), budget: Budget | None = None
    ) -> None:
        self.settings = settings
        self._processes = processes
        self._budget = budget
        self.addresses: tuple[str, ...] = ()
        self.http_address = ""
        self._http: Http | None = None
        self._handshakes = Handshakes(settings.hello_timeout)
        self._health = Health(self._handshakes.called)

    async def start(self) -> None:
        """Starts to serve.

        Raises:
            ConfigurationError: An address cannot be listened on, or a file cannot be used.
        """
        self._tls = tls = ServerTls(self.settings.tls) if self.settings.tls else None
        hosts = dict.fromkeys(a.rpartition(":")[0].strip("[]") for a in self.settings.listen if a[:5] != "unix:")
        self._data_port = DataPort(
            tuple(hosts),
            self.settings.data_port,
            context=tls.data_context if tls is not None else None,
            patience=self.settings.hello_timeout,
            keepalive=self.settings.keepalive,
        )
        self._loop_monitor = LoopMonitor()
        try:
            self._service = Service(
                self.settings,
                self._data_port,
                self._handshakes,
                loop_lag=self._loop_monitor.recent_lag_seconds,
                budget=self._budget,
            )
        except BaseException:
            self._loop_monitor.close()
            raise
        self._throughput = Throughput(self._service.registries.totals)
        self.view = ProcessView(self._service, self._loop_monitor, self._throughput)
        self._ended: dict[grpc.aio.Server, asyncio.Task[None]] = {}
        self._grpc = await self._make_grpc_server()
        try:
            self.addresses = tuple(self._bind(address) for address in self.settings.listen)
            await self._data_port.start()
            await self._start_http()
            self._count_descriptors()
        except ConfigurationError:
            await self._data_port.close()
            await self._close_service()
            raise
        self._service.listening_on(self.addresses, self._processes)
        if tls is not None:
            self._handshakes.ports = tuple(int(a.rpartition(":")[2]) for a in self.addresses if a[:5] != "unix:")
        await self._grpc.start()
        self._service.serving = True
        await self._health.ready()
        self._watch = asyncio.create_task(self._keep_serving())
        if hosts:
            _log.info("data connections on port %d", self._data_port.port)
        for address in self.addresses:
            encrypted = self._tls is not None and not address.startswith("unix:")
            _log.info("listening on %s%s", address, " with TLS" if encrypted else "")

    async def hold(self, held: bool) -> None:
        """Lets gRPC's health service say that workers should not connect, because another process is missing."""
        await self._health.hold(held)

    async def stop(self, grace: float | None = None) -> None:
        """Finishes open rounds within the grace period (by default that of the settings), and releases everything."""
        await self._health.drain()
        await self._service.drain(self.settings.grace if grace is None else grace)
        self._watch.cancel()
        await asyncio.gather(
            self._watch, *(server.stop(0) for server in (self._grpc, *self._ended)), return_exceptions=True
        )
        await self._data_port.close()
        # HTTP ends last, because probes are answered while rounds are finished.
        if self._http is not None:
            await self._http.close()
        await self._close_service()
        _remove_sockets(self.addresses)

    async def _close_service(self) -> None:
        self._loop_monitor.close()
        self._throughput.close()
        await self._service.close()

    async def _make_grpc_server(self) -> grpc.aio.Server:
        """A gRPC server that does not listen yet."""
        server = grpc.aio.server(
            options=(
                *grpc_options(self.settings.keepalive),
                # By default several processes can listen on one port, and the kernel spreads connections over them.
                ("grpc.so_reuseport", 0),
                ("grpc.server_handshake_timeout_ms", int(self.settings.hello_timeout * 1000)),
                ("grpc.max_connection_idle_ms", _IDLE_SECONDS * 1000),
                ("grpc.max_concurrent_streams", _CALLS_PER_CONNECTION),
            )
        )
        server.add_generic_rpc_handlers((self._service.handler(),))
        await self._health.register(server)
        if self.settings.reflection:
            _add_reflection(server)
        return server

    async def _keep_serving(self) -> None:
        """Replaces the gRPC server whenever it ends unexpectedly.

        gRPC's server accepts no new streams after its own code has raised an exception, and a request whose method name
        is not UTF-8 makes it raise one. Without this, one such request would end the aggregator for all workers. Open
        streams continue.
        """
        while True:
            try:
                while await self._grpc.wait_for_termination(_WATCH_SECONDS):
                    pass
            except Exception as error:
                _log.error("gRPC's server ended and is replaced: %r", error)
            else:
                return
            # The address may be in use for a while. Until it is free, probes must report that workers cannot connect.
            self._service.serving = False
            ended = self._grpc
            self._ended[ended] = asyncio.create_task(self._free(ended))
            await self._listen_again()

    async def _free(self, server: grpc.aio.Server) -> None:
        """Frees a server that has ended, after its last stream has ended."""
        await server.stop(_NO_LIMIT_SECONDS)
        self._ended.pop(server, None)

    async def _listen_again(self) -> None:
        """Listens on the addresses of the last server as soon as they are free."""
        self._grpc = await self._make_grpc_server()
        for address in self.addresses:
            # Polled, because the system does not report when an address becomes free. All tries use one server, because
            # a server that is not started keeps the addresses that it has bound.
            while not self._try_bind(address):  # noqa: ASYNC110
                await asyncio.sleep(_WATCH_SECONDS)
        await self._grpc.start()
        self._service.serving = True
        await self._health.ready()

    def _try_bind(self, address: str) -> bool:
        try:
            self._bind(address)
        except ConfigurationError:
            return False
        return True

    async def _start_http(self) -> None:
        if not self.settings.http:
            return
        # Imported only if it is needed, because aiohttp takes long to import.
        from psum.aggregator.observe.http import Http

        self._http = Http(self.view)
        self.http_address = await self._http.start(self.settings.http)
        _log.info("status page, metrics and probes at http://%s/", self.http_address)

    def _count_descriptors(self) -> None:
        """Counts the descriptors that are left for workers, now that the server listens on all addresses.

        Raises:
            ConfigurationError: None are left.
        """
        descriptors = self._service.descriptors
        descriptors.recount(open_descriptors())
        if not descriptors.left:
            raise ConfigurationError([descriptors.lack("no worker could connect")])

    def _bind(self, address: str) -> str:
        if address.startswith("unix:"):
            _remove_stale_socket(pathlib.Path(address.removeprefix("unix:")))
        # Everyone who may open a unix socket may use the aggregator, so only its own user may.
        mask = os.umask(stat.S_IXUSR | stat.S_IRWXG | stat.S_IRWXO)
        try:
            if self._tls is None or address.startswith("unix:"):
                port = self._grpc.add_insecure_port(address)
            else:
                port = self._grpc.add_secure_port(address, self._tls.credentials(self._handshakes.begun))
        except RuntimeError:
            port = 0
        finally:
            os.umask(mask)
        if port == 0:
            raise ConfigurationError([cannot_listen("listen", "workers", address, listen_error(address))])
        if address.startswith("unix:"):
            return address
        return f"{address.rpartition(':')[0]}:{port}"


def run(settings: Settings, *, announce: pathlib.Path | None = None, parent: int | None = None) -> None:
    """Serves until SIGTERM or SIGINT; a second signal ends the process at once.

    With several processes, this one starts and watches them.

    Args:
        settings: The settings.
        announce: A file to which the addresses are written, one on each line, as soon as they accept connections.
        parent: The id of the process that has started this one, if this one ends with it. That counts as SIGTERM.

    Raises:
        ConfigurationError: An address cannot be listened on, a file cannot be used or written, or the limit of file
            descriptors is too low.
    """
    ending = Parent(parent) if parent is not None else None
    if ending is not None:
        ending.watch()
    number = _run(settings, announce, ending)
    if ending is not None and number is signal.SIGTERM:
        ending.clear_up(settings.shm_directory)


def _run(settings: Settings, announce: pathlib.Path | None, parent: Parent | None) -> signal.Signals:
    """Serves until a signal, and returns that."""
    if settings.processes > 1:
        from psum.aggregator.processes.supervisor import supervise

        return supervise(settings, announce=announce, parent=parent)
    prepare()
    set_up_logging(settings)
    for text in settings.warnings():
        _log.warning("%s", text)
    return uvloop.run(_serve(settings, announce, parent))


def prepare() -> None:
    """Prepares this process for serving: its file descriptors, its memory, and the garbage collector.

    Raises:
        ConfigurationError: The limit of file descriptors is too low.
    """
    raise_descriptor_limit()
    # gRPC aborts the process when it cannot open a descriptor.
    if (lack := lacks_descriptors(_OWN_DESCRIPTORS)) is not None:
        raise ConfigurationError(
            [f"{lack}. An aggregator needs {_OWN_DESCRIPTORS} for itself, and up to 4 for each worker"]
        )
    keep_large_blocks(one_arena=True)
    collect_rarely()


def collect_rarely() -> None:
    """Has the garbage collector run less often, and not look at what is loaded by now."""
    # Contributions, sums and messages form no reference cycles, and there are hundreds of thousands of them: frequent
    # collections would scan them for nothing. Everything that is loaded by now stays until the process ends.
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


async def _serve(settings: Settings, announce: pathlib.Path | None, parent: Parent | None) -> signal.Signals:
    server = Server(settings)
    await server.start()
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[signal.Signals] = loop.create_future()

    def ask(signal_number: signal.Signals) -> None:
        if asked.done():
            if parent is not None and signal_number is signal.SIGTERM:
                return
            os._exit(128 + signal_number)
        _log.info("stopping on %s", signal_number.name)
        asked.set_result(signal_number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask, number)
    try:
        if announce is not None:
            write_announcement(announce, server.addresses)
        number = await asked
        if parent is not None and number is signal.SIGTERM:
            await parent.ended()
        return number
    finally:
        await server.stop()


def _add_reflection(server: grpc.aio.Server) -> None:
    from grpc_health.v1 import health
    from grpc_reflection.v1alpha import reflection

    from psum.v1 import aggregator_pb2 as pb

    ours = (service.full_name for service in pb.DESCRIPTOR.services_by_name.values())
    reflection.enable_server_reflection((*ours, health.SERVICE_NAME, reflection.SERVICE_NAME), server)


def _remove_sockets(addresses: Iterable[str]) -> None:
    for address in addresses:
        if address.startswith("unix:"):
            pathlib.Path(address.removeprefix("unix:")).unlink(missing_ok=True)


def _remove_stale_socket(path: pathlib.Path) -> None:
    """Removes the socket of a killed aggregator, because gRPC refuses to listen on an existing path."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise ConfigurationError([f"listen=unix:{path}: there is a file of that name that is not a socket"])
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise ConfigurationError([f"listen=unix:{path}: another process listens on this socket"])
