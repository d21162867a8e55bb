"""The aggregator process: what it listens on, what it announces, how it ends."""

import asyncio
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import trustme

from psum import client as psum
from psum.aggregator import Server, Settings
from psum.aggregator.service.data_port import DataPort
from tests.processes import running


async def test_a_port_that_is_taken_is_refused() -> None:
    """Two aggregators never share a port."""
    server = Server(Settings(listen=("127.0.0.1:0",)))
    await server.start()
    second = Server(Settings(listen=server.addresses))
    with pytest.raises(psum.ConfigurationError, match=rf"cannot listen on {server.addresses[0]} .*in use"):
        await second.start()
    await server.stop(0)


async def test_a_data_port_that_is_taken_is_refused() -> None:
    """The message is like that of other ports."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = Server(Settings(listen=("127.0.0.1:0",), data_port=port))
        with pytest.raises(
            psum.ConfigurationError,
            match=rf"data_port: cannot listen on 127.0.0.1:{port} for data connections: the port is in use already",
        ):
            await server.start()


async def test_a_free_data_port_is_free_on_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that is free on the first address and taken on another is replaced, because no port was asked for."""
    listen = DataPort._listen
    taken: list[socket.socket] = []

    async def listen_late(self: DataPort, host: str) -> None:
        if host == "127.0.0.2" and not taken:
            taken.append(socket.create_server((host, self.port)))
        await listen(self, host)

    monkeypatch.setattr(DataPort, "_listen", listen_late)
    server = Server(Settings(listen=("127.0.0.1:0", "127.0.0.2:0")))
    await server.start()
    with taken[0]:
        port = server._data_port.port
        assert port != taken[0].getsockname()[1]
        for host in ("127.0.0.1", "127.0.0.2"):
            socket.create_connection((host, port), 5).close()
    await server.stop(0)


async def test_the_socket_of_a_killed_aggregator_is_replaced(tmp_path: pathlib.Path) -> None:
    """A socket on which no process listens is replaced, and removed at the end."""
    path = tmp_path / "psum.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    server = Server(Settings(listen=(f"unix:{path}",)))
    await server.start()
    await asyncio.to_thread(psum.fetch_status, f"unix:{path}")
    await server.stop(0)
    assert not path.exists()


async def test_a_path_that_is_in_use_is_refused(tmp_path: pathlib.Path) -> None:
    """Neither another process's socket nor a file is touched."""
    path = tmp_path / "psum.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(psum.ConfigurationError, match="another process listens on this socket"):
            await Server(Settings(listen=(f"unix:{path}",))).start()
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(psum.ConfigurationError, match="that is not a socket"):
        await Server(Settings(listen=(f"unix:{file}",))).start()
    assert file.read_text() == "precious"


@pytest.mark.parametrize("kind", ["host and port", "unix socket", "two, one of them taken for a while"])
async def test_a_method_that_is_no_text_ends_nothing(
    kind: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC's server ends itself over a name that is not UTF-8; open streams go on, and new ones come through again.

    Until it listens again, nobody is told that it is ready.
    """
    listen = f"unix:{tmp_path}/psum.sock" if kind == "unix socket" else "127.0.0.1:0"
    server = Server(Settings(listen=(listen,) * (2 if kind.startswith("two") else 1)))
    await server.start()
    address, *others = server.addresses
    bind = server._bind
    ready = []

    def watched(address: str) -> str:
        ready.append(server._service.ready)
        if address in others and len(ready) < 4:
            raise psum.ConfigurationError(["it is taken"])
        return bind(address)

    monkeypatch.setattr(server, "_bind", watched)
    async with asyncio.timeout(30):
        settings = psum.Settings(aggregators=(address,), num_workers=1)
        with await asyncio.to_thread(psum.connect, settings) as client:
            store = client.store()
            await asyncio.to_thread(store.push_pull, "w", bytearray(4))
            if kind == "unix socket":
                _, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
            else:
                _, writer = await asyncio.open_connection(*address.split(":"))
            fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/\xff"), (b":authority", b"a")]
            fields += [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
            block = b"".join(b"\0%c%s%c%s" % (len(name), name, len(value), value) for name, value in fields)
            settings_frame, headers_frame = (
                bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)),
                bytes((0, 0, len(block), 1, 4, 0, 0, 0, 1)),
            )
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings_frame + headers_frame + block)
            first = server._grpc
            while server._grpc is first:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await asyncio.to_thread(psum.fetch_status, address, timeout=10)
            await asyncio.to_thread(store.push_pull, "w", bytearray(4))
            assert ready
            assert not any(ready)
            assert server._service.ready
            writer.close()
            assert len((await asyncio.to_thread(psum.fetch_status, address)).jobs) == 1
            # gRPC does not deliver the end of a stream whose server has ended: the client would wait in vain.
            await asyncio.to_thread(client.close, 0.1)
        while server._ended:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await server.stop(0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_announces_its_addresses_and_ends_on_a_signal(
    number: signal.Signals, tmp_path: pathlib.Path
) -> None:
    """`psum aggregator` serves on every address it was given, ends with status 0, and logs lines of JSON on request."""
    announce = tmp_path / "addresses"
    command = [sys.executable, "-m", "psum.cli", "aggregator", "--listen", "127.0.0.1:0", "--listen"]
    command += [f"unix:{tmp_path}/psum.sock", "--announce", str(announce), "--log-format", "json"]
    # In /dev/shm it might find, and report, what killed processes of other tests have left.
    environment = os.environ | {"PSUM_SHM_DIRECTORY": str(tmp_path)}
    with running(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        deadline = time.monotonic() + 20
        while not announce.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        addresses = announce.read_text().split()
        assert [list(psum.fetch_status(a).addresses) for a in addresses] == [addresses, addresses]
        process.send_signal(number)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    data_port, *lines = (json.loads(line)["message"] for line in log.splitlines())
    # Any free port; operators need it for their firewall.
    assert re.fullmatch(r"data connections on port \d+", data_port)
    assert lines == [
        *(f"listening on {address}" for address in addresses),
        f"stopping on {number.name}",
    ]


@pytest.mark.parametrize("client_ca", [False, True])
def test_a_workers_authority_does_not_make_an_aggregator_ask_for_certificates(
    client_ca: bool, tmp_path: pathlib.Path
) -> None:
    """PSUM_TLS_CA, exported for workers, is none of its settings, and a warning says so. --tls-ca, the old name of
    --tls-client-ca, still asks for certificates.
    """
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    ca, cert, key = (str(tmp_path / name) for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(ca)
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    announce = tmp_path / "addresses"
    command = [sys.executable, "-m", "psum.cli", "aggregator", "--listen", "127.0.0.1:0", "--announce", str(announce)]
    command += ["--tls-cert", cert, "--tls-key", key, *(["--tls-ca", ca] if client_ca else [])]
    environ = os.environ | {"PSUM_TLS_CA": ca}
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 20
            while not announce.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            settings = psum.Settings.from_environment({"PSUM_TLS_CA": ca})
            if client_ca:
                with pytest.raises(psum.ConnectError, match="it asks for a certificate"):
                    psum.fetch_status(announce.read_text().strip(), timeout=2, settings=settings)
            else:
                psum.fetch_status(announce.read_text().strip(), settings=settings)
        finally:
            process.terminate()
            _, log = process.communicate(timeout=20)
    assert log.count("PSUM_TLS_CA") == (0 if client_ca else 2)
    if client_ca:
        assert "--tls-ca is called --tls-client-ca now" in log
    else:
        assert f"WARNING PSUM_TLS_CA={ca} is a worker's setting and does not count here" in log


def test_settings_that_cannot_be_used_are_told_without_a_traceback() -> None:
    """All mistakes are listed, each with its flag or variable."""
    command = [sys.executable, "-m", "psum.cli", "aggregator", "--listen", "0.0.0.0:1", "--threads", "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "threads='none': expected a whole number from 1 to 256" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["--insecure", "--listen", "192.0.2.77:5"], 1, "on 192.0.2.77:5 for workers: this machine has no such"),
        (["--listen", "unix:no/where"], 1, "listen on unix:no/where for workers: No such file or directory"),
        (["--listen", "127.0.0.1:0", "--announce", "no/where"], 1, "announce=no/where: cannot be written: No such"),
    ],
)
def test_what_cannot_be_served_is_told_in_words_alone(
    arguments: list[str], status: int, complaint: str, tmp_path: pathlib.Path
) -> None:
    """The message has the system's reason, and there is neither a traceback nor a line from gRPC."""
    command = [sys.executable, "-m", "psum.cli", "aggregator", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=tmp_path)
    assert done.returncode == status
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert "add_port.cc" not in done.stderr
