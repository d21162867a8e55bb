"""TLS handshakes never end an aggregator."""

import pathlib
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import trustme

from faults.aggregators import AggregatorProcess

#: How many peers connect at once, how many handshakes each does, and after how many of the first peer's the certificate
#: is renewed.
PEERS: Final = 16
HANDSHAKES: Final = 40
RENEWED_AFTER: Final = 10


def test_many_handshakes_at_once_leave_an_aggregator_alive(tmp_path: pathlib.Path) -> None:
    """Hundreds of handshakes, 16 at a time and with renewals among them, all succeed and do not crash the process.

    gRPC frees a certificate that another handshake is about to use if it is told one at each handshake.
    """
    authority = trustme.CA()
    certificate, key = tmp_path / "server.pem", tmp_path / "server-key.pem"

    def renew() -> None:
        issued = authority.issue_cert("127.0.0.2")
        for path, content in ((key, issued.private_key_pem.bytes()), (certificate, issued.cert_chain_pems[0].bytes())):
            path.with_suffix(".part").write_bytes(content)
            path.with_suffix(".part").rename(path)

    renew()
    server = AggregatorProcess(tmp_path / "aggregator", ("--tls-cert", str(certificate), "--tls-key", str(key)))
    context = ssl.create_default_context()
    authority.configure_trust(context)

    host, port = server.address.split(":")

    def shake_hands(peer: int) -> None:
        for number in range(HANDSHAKES):
            if peer == 0 and number % RENEWED_AFTER == 1:
                renew()
            with socket.create_connection((host, int(port)), 20) as plain:
                context.wrap_socket(plain, server_hostname=host).close()

    try:
        with ThreadPoolExecutor(PEERS) as pool:
            shaking = [pool.submit(shake_hands, peer) for peer in range(PEERS)]
            assert [future.exception() for future in shaking] == [None] * PEERS, server.log
        assert server.process.poll() is None
    finally:
        server.close()
