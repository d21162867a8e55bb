"""Why an address cannot be listened on, and the error text with advice. All listeners use it."""

import errno
import os
import socket

from psum.wire import split_address

_REASONS = {
    errno.EADDRINUSE: "the port is in use already; stop the program that listens there, or choose another port",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose one that it has, or 0.0.0.0 or [::] for all",
    errno.EACCES: "permission denied; ports below 1024 and some paths need more rights",
}


def cannot_listen(setting: str, purpose: str, address: str, error: OSError | OverflowError | None) -> str:
    """Return the error text.

    Args:
        setting: The setting that the address comes from, such as data_port=50052.
        purpose: The service for this address, such as 'data connections'.
        address: host:port, [ipv6]:port or unix:/path.
        error: The error of the system, None if unknown.
    """
    if error is None:
        reason = "the reason is not known"
    elif isinstance(error, OverflowError):
        reason = "ports go up to 65535"
    elif isinstance(error, socket.gaierror):
        reason = f"there is no such host ({error.strerror})"
    else:
        reason = _REASONS.get(error.errno or 0) or error.strerror or str(error)
    return f"{setting}: cannot listen on {address} for {purpose}: {reason}"


def listen_error(address: str) -> OSError | None:
    """Return the error with which the system refuses to listen on an address; None if it does not refuse.

    gRPC does not report the reason, so this asks the system again.
    """
    try:
        if address.startswith("unix:"):
            path = address.removeprefix("unix:")
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(path)
            os.unlink(path)
        else:
            for family, kind, _, _, where in socket.getaddrinfo(*split_address(address), type=socket.SOCK_STREAM):
                with socket.socket(family, kind) as probe:
                    probe.bind(where)
                    probe.listen()
    except OSError as error:
        return error.with_traceback(None)
    return None
