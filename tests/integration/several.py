"""Aggregators of several processes, all of which are servers of the test's own process."""

from typing import Any

from psum.aggregator import Server, Settings
from psum.aggregator.processes.ports import Ports
from psum.client.transport.loop_thread import LoopThread

PATIENCE_SECONDS = 20.0


class Aggregator:
    """An aggregator of several processes.

    Args:
        ports: What reserves its ports.
        processes: How many.
        settings: Further settings.

    Attributes:
        servers: The servers.
        address: The address to list.
        addresses: Those of all processes.
    """

    def __init__(self, ports: Ports, processes: int = 2, **settings: Any) -> None:
        self._thread = LoopThread("fleet")
        each = ports.reserve(Settings(listen=("127.0.0.1:0",), processes=processes, **settings))
        addresses = [settings.listen for settings in each]
        self.servers = [Server(each[0], processes=addresses), *(Server(further) for further in each[1:])]
        self.addresses = tuple(address for address, *_ in addresses)
        self.address = self.addresses[0]
        for server in self.servers:
            self._thread.run(server.start(), PATIENCE_SECONDS)

    def received_bytes(self) -> list[int]:
        """The bytes of contributions that each process has received from the only job's members as an owner."""
        return [server._service.registry.counters.totals()[0] for server in self.servers]

    def close(self) -> None:
        """Stops all servers."""
        for server in self.servers:
            self._thread.run(server.stop(0.2), PATIENCE_SECONDS)
        self._thread.stop()
