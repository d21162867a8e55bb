"""TLS and certificates keep others out, can be renewed, and give errors with advice."""

import datetime
import logging
import os
import pathlib
import re
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from psum.client.transport.credentials import Credentials
from psum.client.transport.diagnosis import diagnose
from tests.integration.credential_files import DAY, GENERAL, Files, total


def test_sums_travel_over_tls_to_workers_that_bring_certificates_and_tokens(
    make_fleet: Callable[..., Any], files: Files
) -> None:
    """Mutual TLS and a token work together, with two aggregators."""
    fleet = make_fleet(
        2, **files.certificate("server", "127.0.0.1"), tls_client_ca=files.ca, token_file=files.write("tokens", GENERAL)
    )
    token = files.write("token", GENERAL + "\n")
    mine = files.certificate("worker", "worker.example")
    assert fleet.on_every_rank(3, total, tls_ca=files.ca, token_file=token, **mine) == [3.0] * 3
    settings = psum.Settings(tls_ca=files.ca, token_file=token, **mine)
    assert [job.name for job in psum.fetch_status(fleet.addresses[0], settings=settings).ended] == ["default"]


@pytest.mark.parametrize(
    ("server", "worker", "text"),
    [
        ("good", "other ca", r"does not come from an authority in .*others-ca.pem \(PSUM_TLS_CA\)"),
        ("good", "plain", "it speaks TLS, this side does not; set PSUM_TLS_CA"),
        ("plain", "tls", "it does not speak TLS, but this side has PSUM_TLS_CA"),
        ("expired", "tls", "its certificate has expired; renew it"),
        ("other name", "tls", "its certificate is not one for '127.0.0.1'.*PSUM_TLS_SERVER_NAME"),
        ("mutual", "tls", "it asks for a certificate; set PSUM_TLS_CERT and PSUM_TLS_KEY"),
        ("mutual", "other certificate", r"does not accept this side's certificate, .*stranger.pem \(PSUM_TLS_CERT\)"),
    ],
)
def test_sides_that_do_not_trust_each_other_say_why_at_once(
    make_fleet: Callable[..., Any], files: Files, server: str, worker: str, text: str
) -> None:
    """The error names the aggregator, the cause and the settings, for a worker and for a status request."""
    servers: dict[str, dict[str, Any]] = {
        "good": files.certificate("server", "127.0.0.1"),
        "plain": {},
        "expired": files.certificate("old", "127.0.0.1", not_after=datetime.datetime(2020, 1, 1)),
        "other name": files.certificate("named", "aggregator.example"),
        "mutual": {**files.certificate("server", "127.0.0.1"), "tls_client_ca": files.ca},
    }
    workers: dict[str, dict[str, Any]] = {
        "tls": {"tls_ca": files.ca},
        "plain": {},
        "other ca": {"tls_ca": files.other_ca},
        "other certificate": {"tls_ca": files.ca, **files.certificate("stranger", "worker", ca=files.others)},
    }
    fleet = make_fleet(**servers[server])
    with pytest.raises(psum.ConnectError, match=f"aggregator {fleet.addresses[0]}.*{text}"):
        # It takes much less than the connect timeout.
        fleet.worker(0, 1, **workers[worker])
    with pytest.raises(psum.ConnectError, match=f"aggregator {fleet.addresses[0]}.*{text}"):
        psum.fetch_status(fleet.addresses[0], settings=psum.Settings(**workers[worker]))


def test_a_certificate_may_be_for_another_name_where_the_worker_says_so(
    make_fleet: Callable[..., Any], files: Files
) -> None:
    """This is for addresses that differ from the names in certificates."""
    fleet = make_fleet(**files.certificate("named", "aggregator.example"))
    assert fleet.on_every_rank(1, total, tls_ca=files.ca, tls_server_name="aggregator.example") == [1.0]


def test_unix_sockets_need_no_tls(make_fleet: Callable[..., Any], files: Files, tmp_path: pathlib.Path) -> None:
    """Only one user can connect to them. They still require a token."""
    path = tmp_path / "psum.sock"
    fleet = make_fleet(
        listen=(f"unix:{path}",),
        **files.certificate("server", "127.0.0.1"),
        token_file=files.write("tokens", GENERAL),
    )
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(psum.DeniedError):
        fleet.worker(0, 1, tls_ca=files.ca)
    token = files.write("token", GENERAL)
    assert fleet.on_every_rank(1, total, tls_ca=files.ca, token_file=token) == [1.0]


def test_a_renewed_certificate_is_used_without_a_restart(
    make_fleet: Callable[..., Any], files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    """New connections use it, and existing ones stay. An invalid renewal is reported and not used."""
    fleet = make_fleet(**files.certificate("server", "127.0.0.1"))
    with fleet.worker(0, 1, tls_ca=files.ca) as before:
        files.certificate("server", "127.0.0.1", ca=files.others)
        with pytest.raises(psum.ConnectError, match="does not come from an authority"):
            fleet.worker(0, 1, job="other", tls_ca=files.ca)
        with fleet.worker(0, 1, job="other", tls_ca=files.other_ca) as after:
            assert total(after) == 1.0
        assert total(before) == 1.0
        files.write("server-key.pem", "no key")
        with caplog.at_level(logging.ERROR), fleet.worker(0, 1, job="other", tls_ca=files.other_ca) as after:
            assert total(after) == 1.0
        [message] = [record.getMessage() for record in caplog.records if record.name.startswith("psum.")]
        assert "keeping their previous content: tls_cert=" in message
        assert "server-key.pem" in message


def test_every_port_uses_a_renewed_certificate(make_fleet: Callable[..., Any], files: Files) -> None:
    """An aggregator that listens on two addresses shows the new certificate on both, also at the first handshake."""
    listen = ("127.0.0.1:0", "127.0.0.2:0")
    [server] = make_fleet(listen=listen, **files.certificate("server", "127.0.0.1")).servers
    hosts, ports = zip(*(address.split(":") for address in server.addresses), strict=True)

    def shown() -> list[str]:
        return [ssl.get_server_certificate((host, int(port))) for host, port in zip(hosts, ports, strict=True)]

    first = shown()
    files.certificate("server", "127.0.0.1")
    second = shown()
    assert shown() == second
    assert len({*first}) == len({*second}) == 1
    assert first != second


def test_a_worker_reads_its_files_again_when_it_connects_again(make_fleet: Callable[..., Any], files: Files) -> None:
    """Both sides change authority and token during a job. A worker reconnects with the new files."""
    token = files.write("token", GENERAL)
    fleet = make_fleet(**files.certificate("server", "127.0.0.1"), token_file=files.write("tokens", GENERAL))
    with fleet.worker(0, 1, tls_ca=files.ca, token_file=token) as client:
        store = client.store()
        store.push_pull("w", np.ones(3, np.float32))
        files.certificate("server", "127.0.0.1", ca=files.others)
        files.write("tokens", DAY)
        fleet.cut()
        future = store.push_pull_async("w", np.ones(3, np.float32))
        with pytest.raises(TimeoutError):
            # Now both the authority and the token differ from the worker's.
            future.result(1)
        files.authority(files.others, "ours")
        files.write("token", DAY)
        future.result(20)


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ("good", "mutual", "it asks for a certificate; set PSUM_TLS_CERT and PSUM_TLS_KEY"),
        ("good", "expired", "its certificate has expired; renew it"),
        ("good", "other name", "its certificate is not one for '127.0.0.1'.*PSUM_TLS_SERVER_NAME"),
        ("good", "other authority", r"does not come from an authority in .*ours-ca.pem \(PSUM_TLS_CA\)"),
        ("good", "plain", "it does not speak TLS, but this side has PSUM_TLS_CA"),
        ("plain", "good", "it speaks TLS, this side does not; set PSUM_TLS_CA"),
        ("plain", "token", r"was refused: this aggregator requires a token, and none came; .* PSUM_TOKEN_FILE"),
    ],
)
def test_a_worker_that_cannot_come_back_says_why(
    make_fleet: Callable[..., Any],
    files: Files,
    caplog: pytest.LogCaptureFixture,
    before: str,
    after: str,
    text: str,
) -> None:
    """After a restart with other settings, the log has the reason at once, and the error has it after the timeout.
    Meanwhile the worker keeps trying, because files may be renewed."""
    servers: dict[str, Callable[[], dict[str, Any]]] = {
        "good": lambda: files.certificate("server", "127.0.0.1"),
        "plain": dict,
        "expired": lambda: files.certificate("old", "127.0.0.1", not_after=datetime.datetime(2020, 1, 1)),
        "other name": lambda: files.certificate("named", "aggregator.example"),
        "other authority": lambda: files.certificate("stranger", "127.0.0.1", ca=files.others),
        "mutual": lambda: {**files.certificate("server", "127.0.0.1"), "tls_client_ca": files.ca},
        "token": lambda: {"token_file": files.write("tokens", GENERAL)},
    }
    fleet = make_fleet(**servers[before]())
    tls = {"tls_ca": files.ca} if before == "good" else {}
    with fleet.worker(0, 1, reconnect_timeout=2.0, **tls) as client:
        assert total(client) == 1.0
        fleet.restart(**servers[after]())
        address = fleet.addresses[0]
        with pytest.raises(psum.AggregatorLostError, match=rf"within 2 s \(PSUM_RECONNECT_TIMEOUT\): .*{text}"):
            client.store().push_pull("v", np.ones(3, np.float32))
    lines = [record.getMessage() for record in caplog.records if "waits for aggregator" in record.getMessage()]
    assert len(lines) == 1
    assert re.match(
        rf"rank 0 waits for aggregator {address}, for up to 2 s \(PSUM_RECONNECT_TIMEOUT\): .*{text}", lines[0]
    )


@pytest.mark.parametrize("silent", [False, True])
def test_an_end_is_not_taken_for_a_refusal(files: Files, silent: bool) -> None:
    """An aggregator closes a TLS connection silently when it is about to end, and when it requires another certificate.
    Only in the second case it accepts further connections."""
    certificate = files.certificate("server", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate["tls_cert"], certificate["tls_key"])
    credentials = Credentials.of(psum.Settings(tls_ca=files.ca))
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(10)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        found = pool.submit(diagnose, address, credentials)
        for _ in range(2 if silent else 1):
            connection, _ = listener.accept()
            context.wrap_socket(connection, server_side=True).close()
        listener.close()
        assert found.result(10) == ("it asks for a certificate; set PSUM_TLS_CERT and PSUM_TLS_KEY" if silent else None)


def test_a_connection_that_is_closed_at_once_says_nothing_of_certificates(files: Files) -> None:
    """A proxy without a server behind it closes connections like this."""
    credentials = Credentials.of(psum.Settings(tls_ca=files.ca))
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(10)
        found = pool.submit(diagnose, f"127.0.0.1:{listener.getsockname()[1]}", credentials)
        listener.accept()[0].close()
        assert found.result(10) is None


@pytest.mark.parametrize("wrong", ["missing", "no certificate", "another's key"])
def test_tls_files_that_cannot_be_used_are_named(make_fleet: Callable[..., Any], files: Files, wrong: str) -> None:
    """Both sides report them at the start."""
    good, other = files.certificate("one", "127.0.0.1"), files.certificate("two", "127.0.0.1")
    match wrong:
        case "missing":
            os.unlink(good["tls_cert"])
        case "no certificate":
            files.write("one.pem", "hello")
        case "another's key":
            good["tls_key"] = other["tls_key"]
    with pytest.raises(psum.ConfigurationError, match=r"one\.pem"):
        make_fleet(**good)
    fleet = make_fleet()
    with pytest.raises(psum.ConfigurationError, match=r"one\.pem"):
        fleet.worker(0, 1, tls_ca=files.ca, **good)
