"""The error text for addresses that cannot be listened on."""

import errno
import os
import re
import socket

import pytest

from psum.runtime import cannot_listen


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            OSError(errno.EADDRINUSE, "error while attempting to bind"),
            "the port is in use already; stop the program that listens",
        ),
        (OSError(errno.EADDRNOTAVAIL, "x"), "this machine has no such address"),
        (PermissionError(errno.EACCES, "x"), "permission denied"),
        (socket.gaierror(-2, "Name or service not known"), r"there is no such host \(Name or service not known\)"),
        (OSError(errno.ENOENT, os.strerror(errno.ENOENT)), "No such file or directory"),
        (OSError("odd"), "odd"),
        (OverflowError("bind(): port must be 0-65535."), "ports go up to 65535"),
        (None, "the reason is not known"),
    ],
)
def test_why_an_address_cannot_be_listened_on(error: OSError | OverflowError | None, reason: str) -> None:
    """The text has the setting, the address, the reason and advice, in the same words for all ports."""
    said = cannot_listen("http", "HTTP", "h:1", error)
    assert re.match(f"http: cannot listen on h:1 for HTTP: {reason}", said)
