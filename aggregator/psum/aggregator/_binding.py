"""Why an address cannot be listened on, which gRPC does not tell."""

import os
import socket


def why_not(address: str) -> str:
    """What the system says against listening on an address, in words."""
    try:
        if address.startswith("unix:"):
            path = address.removeprefix("unix:")
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(path)
            os.unlink(path)
        else:
            host, _, port = address.rpartition(":")
            for family, kind, _, _, place in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM):
                with socket.socket(family, kind) as probe:
                    probe.bind(place)
                    probe.listen()
    except OSError as error:
        return error.strerror or str(error)
    return "the reason is not known"
