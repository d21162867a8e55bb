"""Addresses to connect to, and what is said where one cannot be listened on."""

import errno
import os
import re
import socket

import pytest

from psum.runtime import cannot_listen
from psum.wire import join_address, parse_destination, split_address


@pytest.mark.parametrize("address", ["a:1", "[::1]:65535", "unix:/x", "unix:/x:0"])
def test_an_address_to_connect_to(address: str) -> None:
    """It comes as gRPC takes it."""
    assert parse_destination(f" {address}") == address


@pytest.mark.parametrize("address", ["a:0", "[::1]:00"])
def test_nobody_listens_on_port_0(address: str) -> None:
    """The error says what port 0 is for, and what is expected."""
    with pytest.raises(ValueError, match="means any free port; expected the port that it listens on"):
        parse_destination(address)


@pytest.mark.parametrize(("address", "parts"), [("a:1", ("a", 1)), ("[::1]:5", ("::1", 5))])
def test_host_and_port(address: str, parts: tuple[str, int]) -> None:
    """Apart and together again."""
    assert split_address(address) == parts
    assert join_address(*parts) == address


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EADDRINUSE, "error while attempting to bind"), "the port is in use already; stop what listens"),
        (OSError(errno.EADDRNOTAVAIL, "x"), "this machine has no such address"),
        (PermissionError(errno.EACCES, "x"), "this process may not listen there"),
        (socket.gaierror(-2, "Name or service not known"), r"there is no such host \(Name or service not known\)"),
        (OSError(errno.ENOENT, os.strerror(errno.ENOENT)), "No such file or directory"),
        (OSError("odd"), "odd"),
        (OverflowError("bind(): port must be 0-65535."), "ports go up to 65535"),
        (None, "the reason is not known"),
    ],
)
def test_why_an_address_cannot_be_listened_on(error: OSError | OverflowError | None, reason: str) -> None:
    """What is bound, by which setting, why not, and what to do: in the same words for all ports."""
    said = cannot_listen("http", "HTTP", "h:1", error)
    assert re.match(f"http: cannot listen on h:1 for HTTP: {reason}", said)
