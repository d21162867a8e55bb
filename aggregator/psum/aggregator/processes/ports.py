"""Reserves the ports of all processes as long as the supervisor runs.

A process that was killed comes back at its own ports. Meanwhile nobody else gets them: the supervisor has sockets that
are bound to them and do not listen. Linux lets a process listen on such a port if both sides set SO_REUSEADDR.
"""

import contextlib
import errno
import socket
from collections.abc import Iterator, Sequence
from typing import Any, Final

from psum.aggregator.process_addresses import nth_address, nth_port
from psum.aggregator.settings import Settings
from psum.runtime import cannot_listen, replaced
from psum.wire import join_address, split_address
from psum.wire.errors import ConfigurationError

#: How often another free port is tried if one is free on one address of a host and taken on another.
_ATTEMPTS: Final = 8


class Ports:
    """Reserved ports. A context manager that frees them."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> "Ports":
        return self

    def __exit__(self, *_: object) -> None:
        for reserved in self._sockets:
            reserved.close()

    def reserve(self, settings: Settings) -> list[Settings]:
        """Reserves the ports of each process.

        Returns:
            The settings of each process, in which no port is 0, and no two processes have the same address.

        Raises:
            ConfigurationError: A port is taken, or an address does not belong to this machine.
        """
        return [self._of(settings, number) for number in range(settings.processes)]

    def _of(self, settings: Settings, number: int) -> Settings:
        listen = []
        for address in settings.listen:
            own = nth_address(address, number)
            if not own.startswith("unix:"):
                host, port = split_address(own)
                own = join_address(host, self._take([host], port, "listen", "workers"))
            listen.append(own)
        hosts = list(dict.fromkeys(split_address(a)[0] for a in listen if not a.startswith("unix:")))
        data_port = nth_port(settings.data_port, number)
        if hosts:
            data_port = self._take(hosts, data_port, "data_port", "data connections")
        return replaced(
            settings,
            listen=tuple(listen),
            data_port=data_port,
            http="",
            # The threads are those of the whole aggregator.
            threads=max(1, settings.threads // settings.processes),
        )

    def _take(self, hosts: Sequence[str], port: int, setting: str, purpose: str) -> int:
        """Reserves a port on all hosts; 0 for one that is free on all of them."""
        for attempt in range(_ATTEMPTS):
            taken: list[socket.socket] = []
            found = port
            try:
                for host in hosts:
                    for family, where in _places(host):
                        taken.append(_bound(family, (where[0], found, *where[2:])))
                        found = taken[-1].getsockname()[1]
            except OSError as error:
                for reserved in taken:
                    reserved.close()
                if port or error.errno != errno.EADDRINUSE or attempt == _ATTEMPTS - 1:
                    text = cannot_listen(setting, purpose, join_address(host, found), error)
                    raise ConfigurationError([text]) from None
                continue
            self._sockets += taken
            return found
        raise AssertionError("the last attempt returns or raises")


def _places(host: str) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """The families and addresses of a host, without IPv6 if only the name has it and the kernel does not."""
    found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, _, _, _, where in found:
        try:
            socket.socket(family).close()
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT or len(found) == 1:
                raise
        else:
            yield family, where


def _bound(family: int, where: tuple[Any, ...]) -> socket.socket:
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(socket.socket(family))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Otherwise it could not have the same port as IPv4.
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(where)
        stack.pop_all()
    return made
