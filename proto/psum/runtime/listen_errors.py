"""Why an address cannot be listened on, and what to do: in the same words for whatever listens."""

import errno
import socket

_REASONS = {
    errno.EADDRINUSE: "the port is in use already; stop what listens there, or choose another port",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose one that it has, or 0.0.0.0 or [::] for all",
    errno.EACCES: "this process may not listen there; ports below 1024 and some paths need more rights",
}


def cannot_listen(setting: str, purpose: str, address: str, error: OSError | OverflowError | None) -> str:
    """Says what could not be listened on.

    Args:
        setting: Where the address comes from, such as data_port=50052.
        purpose: What is to be served there.
        address: host:port, [ipv6]:port or unix:/path.
        error: What the system says against it, None where that is not known.
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
