"""Why an address cannot be listened on, which gRPC does not tell."""

import os
import socket

from psum.wire import split_address


def obstacle(address: str) -> OSError | None:
    """What the system says against listening on an address, None where it is not known."""
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
