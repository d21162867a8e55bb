"""One aggregator process: its event loop, its listening addresses, its signals."""

import asyncio
import contextlib
import gc
import logging
import os
import pathlib
import signal
import socket
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING

import grpc.aio
import uvloop

from psum.aggregator.access.handshakes import Handshakes
from psum.aggregator.access.tls import ServerTls
from psum.aggregator.listening import obstacle
from psum.aggregator.observe.health import Health
from psum.aggregator.observe.logging import set_up_logging
from psum.aggregator.service.data_port import DataPort
from psum.aggregator.service.service import Service
from psum.aggregator.settings import Settings
from psum.runtime import (
    cannot_listen,
    keep_large_blocks,
    lacks_descriptors,
    open_descriptors,
    raise_descriptor_limit,
)
from psum.wire import grpc_options
from psum.wire.errors import ConfigurationError

if TYPE_CHECKING:
    from psum.aggregator.observe.http import Http

_log = logging.getLogger(__name__)

#: How soon it is noticed that gRPC's server has ended by itself, and how often it is then tried to listen again.
_WATCH_SECONDS = 0.2

#: As long as streams of a server that has ended may go on: for as long as they like.
_FOR_EVER = 10.0**9


#: After this long without a call, a connection is closed: nobody is to keep one for nothing.
_IDLE_SECONDS = 60

#: Calls on one connection; a worker makes one, and a proxy may put several workers' together.
_CALLS_PER_CONNECTION = 1024

#: So many descriptors a process has at least, once it listens.
_OWN_DESCRIPTORS = 32

#: So many more objects than before make the collector look for circles of them.
_COLLECT_AFTER = 10_000


class Server:
    """An aggregator that serves on the running event loop, between `start` and `stop`.

    Attributes:
        addresses: Where it listens, with the ports that were really bound, once it was started.
        http_address: The same for HTTP, empty where that is not asked for.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.addresses: tuple[str, ...] = ()
        self.http_address = ""
        self._http: Http | None = None
        self._handshakes = Handshakes(settings.hello_timeout)
        self._health = Health(self._handshakes.called)

    async def start(self) -> None:
        """Begins to serve.

        Raises:
            ConfigurationError: An address cannot be listened on, or a file cannot be used.
        """
        tls = ServerTls(self.settings.tls) if self.settings.tls else None
        self._tls = tls.credentials(self._handshakes.begun) if tls is not None else None
        hosts = dict.fromkeys(a.rpartition(":")[0].strip("[]") for a in self.settings.listen if a[:5] != "unix:")
        self._data_port = DataPort(
            tuple(hosts),
            self.settings.data_port,
            context=tls.data_context if tls is not None else None,
            patience=self.settings.hello_timeout,
            keepalive=self.settings.keepalive,
        )
        self._service = Service(self.settings, self._data_port, self._handshakes)
        self._ended: dict[grpc.aio.Server, asyncio.Task[None]] = {}
        self._grpc = await self._make()
        try:
            self.addresses = tuple(self._bind(address) for address in self.settings.listen)
            await self._data_port.start()
            await self._start_http()
            self._count_descriptors()
        except ConfigurationError:
            await self._data_port.close()
            await self._service.close()
            raise
        self._service.addresses = self.addresses
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

    async def stop(self, grace: float | None = None) -> None:
        """Finishes open rounds within the grace period (by default that of the settings), and frees everything."""
        await self._health.drain()
        await self._service.drain(self.settings.grace if grace is None else grace)
        self._watch.cancel()
        await asyncio.gather(
            self._watch, *(server.stop(0) for server in (self._grpc, *self._ended)), return_exceptions=True
        )
        await self._data_port.close()
        # Last of what listens: while rounds are finished, probes are still answered.
        if self._http is not None:
            await self._http.close()
        await self._service.close()
        _remove_sockets(self.addresses)

    async def _make(self) -> grpc.aio.Server:
        """A server of gRPC's that listens nowhere yet."""
        server = grpc.aio.server(
            options=(
                *grpc_options(self.settings.keepalive),
                # By default gRPC lets several processes listen on one port, and the kernel deals out the connections.
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
        """Serves again where gRPC's server has ended by itself.

        It takes no new streams once its own code has raised an exception, which a method's name that is not UTF-8 makes
        it do: one request would have ended the aggregator for all. The streams that it has open go on.
        """
        while True:
            try:
                while await self._grpc.wait_for_termination(_WATCH_SECONDS):
                    pass
            except Exception as error:
                _log.error("gRPC's server ended and is replaced: %r", error)
            else:
                return
            # Its address may be taken for a while: until then nobody should be sent here.
            self._service.serving = False
            ended = self._grpc
            self._ended[ended] = asyncio.create_task(self._see_out(ended))
            await self._listen_again()

    async def _see_out(self, server: grpc.aio.Server) -> None:
        """Frees a server that has ended once its last stream has."""
        await server.stop(_FOR_EVER)
        self._ended.pop(server, None)

    async def _listen_again(self) -> None:
        """Listens where the last server did, as soon as its addresses are free."""
        self._grpc = await self._make()
        for address in self.addresses:
            # Polled, since nobody tells when an address is free; with one server for all tries, since one that is not
            # started keeps what it could bind.
            while not self._may_bind(address):  # noqa: ASYNC110
                await asyncio.sleep(_WATCH_SECONDS)
        await self._grpc.start()
        self._service.serving = True
        await self._health.ready()

    def _may_bind(self, address: str) -> bool:
        try:
            self._bind(address)
        except ConfigurationError:
            return False
        return True

    async def _start_http(self) -> None:
        if not self.settings.http:
            return
        # Takes a while to import, and is not always wanted.
        from psum.aggregator.observe.http import Http

        self._http = Http(self._service)
        self.http_address = await self._http.start(self.settings.http)
        _log.info("status page, metrics and probes at http://%s/", self.http_address)

    def _count_descriptors(self) -> None:
        """Now that it listens everywhere, it is known how many descriptors are left for workers.

        Raises:
            ConfigurationError: None is.
        """
        descriptors = self._service.descriptors
        descriptors.recount(open_descriptors())
        if not descriptors.left:
            raise ConfigurationError([descriptors.lack("no worker could come")])

    def _bind(self, address: str) -> str:
        if address.startswith("unix:"):
            _remove_stale_socket(pathlib.Path(address.removeprefix("unix:")))
        # Whoever may open a unix socket may use the aggregator: its user alone.
        mask = os.umask(stat.S_IXUSR | stat.S_IRWXG | stat.S_IRWXO)
        try:
            if self._tls is None or address.startswith("unix:"):
                port = self._grpc.add_insecure_port(address)
            else:
                port = self._grpc.add_secure_port(address, self._tls)
        except RuntimeError:
            port = 0
        finally:
            os.umask(mask)
        if port == 0:
            raise ConfigurationError([cannot_listen("listen", "workers", address, obstacle(address))])
        if address.startswith("unix:"):
            return address
        return f"{address.rpartition(':')[0]}:{port}"


def run(settings: Settings, *, announce: pathlib.Path | None = None) -> None:
    """Serves until SIGTERM or SIGINT; a second signal ends the process at once.

    Args:
        settings: The settings.
        announce: A file that is to hold the addresses, one a line, once they can be connected to.

    Raises:
        ConfigurationError: An address cannot be listened on, a file cannot be used or written, or this process may have
            too few file descriptors.
    """
    raise_descriptor_limit()
    # gRPC ends the process where it lacks one.
    if (lack := lacks_descriptors(_OWN_DESCRIPTORS)) is not None:
        raise ConfigurationError(
            [f"{lack}. An aggregator needs {_OWN_DESCRIPTORS} for itself, and up to 4 for each worker"]
        )
    keep_large_blocks(one_arena=True)
    # Contributions, sums and messages refer to each other in no circles: hundreds of thousands come and go, and to look
    # through those that are under way again and again finds nothing. What is loaded by now stays for good.
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    set_up_logging(settings)
    for text in settings.warnings():
        _log.warning("%s", text)
    uvloop.run(_serve(settings, announce))


async def _serve(settings: Settings, announce: pathlib.Path | None) -> None:
    server = Server(settings)
    await server.start()
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def ask(signal_number: signal.Signals) -> None:
        if asked.is_set():
            os._exit(128 + signal_number)
        _log.info("stopping on %s", signal_number.name)
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask, number)
    try:
        if announce is not None:
            _write_whole(announce, "".join(f"{address}\n" for address in server.addresses))
        await asked.wait()
    finally:
        await server.stop()


def _add_reflection(server: grpc.aio.Server) -> None:
    from grpc_health.v1 import health
    from grpc_reflection.v1alpha import reflection

    from psum.v1 import aggregator_pb2 as pb

    ours = (service.full_name for service in pb.DESCRIPTOR.services_by_name.values())
    reflection.enable_server_reflection((*ours, health.SERVICE_NAME, reflection.SERVICE_NAME), server)


def _write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file so that a reader sees all of it or nothing.

    Raises:
        ConfigurationError: It cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text)
        part.rename(path)
    except OSError as error:
        raise ConfigurationError([f"announce={path}: cannot be written: {error.strerror}"]) from None


def _remove_sockets(addresses: Iterable[str]) -> None:
    for address in addresses:
        if address.startswith("unix:"):
            pathlib.Path(address.removeprefix("unix:")).unlink(missing_ok=True)


def _remove_stale_socket(path: pathlib.Path) -> None:
    """Removes what an aggregator that was killed left behind; gRPC refuses to listen on an existing path."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise ConfigurationError([f"listen=unix:{path}: there is a file of that name which is no socket"])
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise ConfigurationError([f"listen=unix:{path}: another process listens on this socket"])
