"""Where workers on other hosts open data connections, each invited over its stream."""

import asyncio
import contextlib
import errno
import hmac
import logging
import secrets
import ssl
from collections.abc import Sequence
from typing import Final

from psum.aggregator._line import Line
from psum.wire import SECRET_BYTES, Pipe, TlsFiles, WatchedFiles, cannot_listen, join_address
from psum.wire.errors import ConfigurationError

_log = logging.getLogger(__name__)

#: How long open connections may take to close.
_CLOSING_SECONDS: Final = 1.0

_BACKLOG: Final = 1024

#: How often a free port is looked for that is free on all addresses.
_ATTEMPTS: Final = 8

#: Connections that have shown no secret yet.
_MAX_STRANGERS: Final = 256

#: What may wait here of one worker, messages and payloads.
_AHEAD_BYTES: Final = 16 << 20


class DataPort:
    """Listens for data connections. Whoever connects must first show the secret of an invitation, which is good once.

    Args:
        hosts: Where to listen.
        port: The port, 0 for a free one.
        tls: The aggregator's files: data connections are encrypted where streams are.
        patience: Seconds within which a connection must show its secret.
        keepalive: Seconds of silence after which a worker is probed.
    """

    def __init__(self, hosts: Sequence[str], port: int, *, tls: TlsFiles, patience: float, keepalive: float) -> None:
        self.port = port
        """The port, once it listens."""
        self._hosts = tuple(hosts)
        self._patience = patience
        self._keepalive = keepalive
        self._invited: dict[bytes, Line] = {}
        self._servers: list[asyncio.Server] = []
        self._strangers: dict[Pipe, asyncio.TimerHandle] = {}
        """Connections that have shown no secret yet, and what ends them."""
        self._context: ssl.SSLContext | None = None
        if tls:
            self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._files: WatchedFiles[None] = WatchedFiles(tls.paths, lambda: self._load(tls))

    async def start(self) -> None:
        """Begins to listen.

        Raises:
            ConfigurationError: It cannot listen there.
        """
        given = self.port
        for attempt in range(_ATTEMPTS):
            try:
                for host in self._hosts:
                    await self._listen(host)
                return
            except OSError as error:
                if given or error.errno != errno.EADDRINUSE or attempt == _ATTEMPTS - 1:
                    address = join_address(host, self.port)
                    await self.close()
                    raise ConfigurationError([cannot_listen("data_port", "data connections", address, error)]) from None
            # What is free on one address was taken on another.
            await self.close()
            self._servers.clear()
            self.port = given

    async def close(self) -> None:
        """Listens no more, and ends the connections that have shown no secret."""
        for pipe in list(self._strangers):
            self._turn_away(pipe)
        for server in self._servers:
            server.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING_SECONDS):
                for server in self._servers:
                    await server.wait_closed()

    async def _listen(self, host: str) -> None:
        server = await asyncio.get_running_loop().create_server(
            self._make,
            host,
            self.port,
            # After a restart all workers come at once.
            backlog=_BACKLOG,
            ssl=self._context,
            ssl_handshake_timeout=None if self._context is None else self._patience,
        )
        self._servers.append(server)
        self.port = server.sockets[0].getsockname()[1]

    def invite(self, line: Line) -> bytes:
        """A secret by which a worker's data connection is known."""
        if self._context is not None:
            # The next handshake uses what the files say now.
            self._files.get()
        secret = secrets.token_bytes(SECRET_BYTES)
        self._invited[secret] = line
        return secret

    def uninvite(self, line: Line) -> None:
        """The worker's stream has ended: it may open no data connection for it any more."""
        self._invited = {secret: other for secret, other in self._invited.items() if other is not line}

    def _load(self, tls: TlsFiles) -> None:
        tls.read()
        assert self._context is not None
        self._context.load_cert_chain(tls.cert, tls.key)

    def _make(self) -> Pipe:
        pipe = Pipe(_AHEAD_BYTES, lambda secret: self._admit(pipe, secret), keepalive=self._keepalive)
        self._strangers[pipe] = asyncio.get_running_loop().call_later(self._patience, self._turn_away, pipe)
        if len(self._strangers) > _MAX_STRANGERS:
            # The one that has had the most time.
            self._turn_away(next(iter(self._strangers)))
        return pipe

    def _admit(self, pipe: Pipe, shown: bytes) -> bool:
        timer = self._strangers.pop(pipe, None)
        if timer is None:
            return False
        timer.cancel()
        found = [secret for secret in self._invited if hmac.compare_digest(secret, shown)]
        if not found:
            _log.warning("a data connection from %s was refused: its secret is none of those given out", pipe.peer)
            return False
        self._invited.pop(found[0]).offer(pipe)
        return True

    def _turn_away(self, pipe: Pipe) -> None:
        self._strangers.pop(pipe).cancel()
        _log.warning("a data connection from %s was closed: it did not show a secret in time", pipe.peer)
        pipe.close()
