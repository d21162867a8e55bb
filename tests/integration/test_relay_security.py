"""A relay shows owners its own certificate and the workers' token, and sends neither where it must not go."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from psum import client as psum
from tests.integration.credential_files import GENERAL, Files, total


def test_a_relay_shows_its_certificate_and_the_workers_token(make_fleet: Callable[..., Any], files: Files) -> None:
    """Between relay and owner, TLS is mutual too. The owner gets the job's token, which the workers brought."""
    fleet = make_fleet(
        2, **files.certificate("server", "127.0.0.1"), tls_client_ca=files.ca, token_file=files.write("tokens", GENERAL)
    )
    given = {"tls_ca": files.ca, "token_file": files.write("token", GENERAL)}
    given |= files.certificate("worker", "worker.example")

    def run(rank: int) -> float:
        relay = f"{fleet.addresses[0]}/2" if rank < 2 else "off"
        with fleet.worker(rank, 3, relay=relay, **given) as client:
            return total(client)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, range(3), timeout=30)) == [3.0, 3.0, 3.0]


def test_a_relay_sends_no_token_unencrypted_to_other_machines(make_fleet: Callable[..., Any], files: Files) -> None:
    """The workers' token does not go on where they could not have sent it without saying so."""
    fleet = make_fleet(1, token_file=files.write("tokens", GENERAL))
    given = {
        "relay": f"{fleet.addresses[0]}/1",
        "aggregators": ("192.0.2.1:1",),
        "token_file": files.write("token", GENERAL),
        "insecure": True,
    }
    # The relay connects when its group is complete, here at once.
    with pytest.raises(psum.DeniedError, match=r"192\.0\.2\.1:1.*unencrypted"), fleet.worker(0, 2, **given) as client:
        total(client)


def test_a_relay_that_trusts_nobody_names_its_own_setting(make_fleet: Callable[..., Any], files: Files) -> None:
    """A worker's setting of that kind would change nothing."""
    fleet = make_fleet(2, **files.certificate("server", "127.0.0.1"))
    relay = f"{fleet.addresses[0]}/1"
    with pytest.raises(psum.ConnectError, match=r"not come from a public authority, and PSUM_RELAY_TLS_CA names no"):
        fleet.worker(0, 2, relay=relay, aggregators=fleet.addresses[1:], tls_ca=files.ca)
