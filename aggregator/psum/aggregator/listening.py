"""Finds out why an address cannot be listened on. gRPC does not report the reason."""

import os
import socket

from psum.wire import split_address


def listen_error(address: str) -> OSError | None:
    """The error with which the system refuses to listen on an address; None if it does not refuse."""
    try:
        if address.startswith("unix:"):
            path = address.removeprefix("unix:")
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(path)
            os.unlink(path)
        else:
            for family, kind, _, _, place in socket.getaddrinfo(*split_address(address), type=socket.SOCK_STREAM):
                with socket.socket(family, kind) as probe:
                    probe.bind(place)
                    probe.listen()
    except OSError as error:
        return error.with_traceback(None)
    return None
