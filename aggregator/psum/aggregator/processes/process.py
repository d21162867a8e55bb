"""One process of an aggregator that has several: `python -m psum.aggregator.processes.process DESCRIPTOR`.

It serves until the supervisor sends SIGTERM, and ends at once when the supervisor has ended.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from typing import Any

import uvloop

from psum.aggregator.observe.logging import set_up_logging
from psum.aggregator.parent import end_with
from psum.aggregator.processes.orders import (
    ALL_SERVE,
    FAMILIES,
    STATUS,
    UNREADY,
    Fails,
    Order,
    Serves,
    packed,
    receive,
    receive_now,
)
from psum.aggregator.processes.shared_budget import Reservations, SharedBudget
from psum.aggregator.server import Server, prepare
from psum.wire.errors import ConfigurationError

# Not __name__, which is __main__ here.
_log = logging.getLogger("psum.aggregator.processes.process")


def main(descriptor: int) -> None:
    """Runs the process whose order comes from a socket with this descriptor."""
    connection = socket.socket(fileno=descriptor)
    try:
        order: Order = receive_now(connection)
    except EOFError:
        return
    # Even if this process is stopped or hangs. Without the permission for that, it ends when it reads the end of its
    # connection to the supervisor.
    end_with(order.supervisor, signal.SIGKILL)
    set_up_logging(order.settings, process=order.number)
    try:
        prepare()
    except ConfigurationError as error:
        connection.sendall(packed(Fails(error.mistakes)))
        return
    uvloop.run(_serve(order, connection))


async def _serve(order: Order, connection: socket.socket) -> None:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # A second signal changes nothing: a service manager may send one to all processes, beside the supervisor's.
        loop.add_signal_handler(number, asked.set)
    reader, writer = await asyncio.open_connection(sock=connection)
    count = len(order.addresses)
    budget = SharedBudget(order.settings.memory_budget, Reservations(order.reservations, count), order.number)
    server = Server(order.settings, processes=() if order.number else order.addresses, budget=budget)
    await server.hold(True)
    try:
        await server.start()
    except ConfigurationError as error:
        writer.write(packed(Fails(error.mistakes)))
        await writer.drain()
        return
    answering = asyncio.create_task(_answer(server, reader, writer))
    writer.write(packed(Serves()))
    try:
        await asked.wait()
    finally:
        await server.stop()
        answering.cancel()


async def _answer(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers the supervisor's questions, and ends this process when the supervisor has ended."""
    try:
        while True:
            writer.write(packed(await _answer_to(await receive(reader), server)))
            await writer.drain()
    except (EOFError, ConnectionError):
        # Nobody would start this process again, or end it. A new supervisor needs its addresses.
        _log.error("the supervisor of this aggregator has ended, and so does this process")
        os._exit(1)


async def _answer_to(question: str, server: Server) -> Any:
    if question == FAMILIES:
        return await server.view.families()
    if question == STATUS:
        return server.view.status()
    if question == UNREADY:
        return await server.view.unready()
    return await server.hold(question != ALL_SERVE)


if __name__ == "__main__":
    main(int(sys.argv[1]))
