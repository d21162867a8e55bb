"""TLS, certificates and tokens keep others out, can be renewed, and give errors with advice."""

import contextlib
import datetime
import logging
import os
import pathlib
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import trustme

from psum import client as psum
from psum.client.transport.credentials import Credentials
from psum.client.transport.diagnosis import diagnose
from psum.v1 import aggregator_pb2 as pb
from psum.wire import PROTOCOL_VERSION, decode, encode

NIGHT, DAY, GENERAL, UNKNOWN = "night-0123456789", "day-0123456789ab", "general-01234567", "unknown-01234567"


class Files:
    """The PEM files and token files of a test."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.ours, self.others = trustme.CA(), trustme.CA()
        self.ca = self.authority(self.ours, "ours")
        self.other_ca = self.authority(self.others, "others")

    def authority(self, ca: trustme.CA, name: str) -> str:
        return self.write(f"{name}-ca.pem", ca.cert_pem.bytes())

    def write(self, name: str, content: bytes | str) -> str:
        """Replace a file atomically, as Kubernetes does."""
        part = self.directory / f"{name}.part"
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.rename(self.directory / name)
        return str(self.directory / name)

    def certificate(self, name: str, *hosts: str, ca: trustme.CA | None = None, **given: Any) -> dict[str, Any]:
        """Return the settings for a new certificate."""
        issued = (ca or self.ours).issue_cert(*hosts, **given)
        return {
            "tls_cert": self.write(f"{name}.pem", issued.cert_chain_pems[0].bytes()),
            "tls_key": self.write(f"{name}-key.pem", issued.private_key_pem.bytes()),
        }


@pytest.fixture
def files(tmp_path: pathlib.Path) -> Files:
    return Files(tmp_path)


def total(client: psum.Client) -> float:
    """Return the result of a push-pull of 1."""
    value = np.ones(100_000, np.float32)
    client.store().push_pull("w", value)
    assert (value == value[0]).all()
    return float(value[0])


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
        psum.fetch_status(fleet.addresses[0], timeout=1, settings=psum.Settings(**workers[worker]))


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


TOKENS = f"# of the night shift\nnight {NIGHT}\n\nnight shift two {DAY}\n{GENERAL}\n"


@pytest.mark.parametrize(
    ("job", "token", "allowed"),
    [
        ("night", NIGHT, True),
        ("night shift two", DAY, True),
        ("anything", GENERAL, True),
        ("night", DAY, False),
        ("night", GENERAL, False),
        ("anything", NIGHT, False),
        ("night", UNKNOWN, False),
        ("night", None, False),
    ],
)
def test_a_job_is_open_to_its_token_only(
    make_fleet: Callable[..., Any], files: Files, job: str, token: str | None, allowed: bool
) -> None:
    """A token without a job opens all jobs that have no token of their own. The error says what to do."""
    fleet = make_fleet(token_file=files.write("tokens", TOKENS))
    given = {"token_file": files.write("token", token)} if token else {}
    if allowed:
        assert fleet.on_every_rank(1, total, job=job, **given) == [1.0]
    else:
        with pytest.raises(psum.DeniedError, match="PSUM_TOKEN_FILE") as caught:
            fleet.worker(0, 1, job=job, **given)
        for secret in (NIGHT, DAY, GENERAL, UNKNOWN):
            assert secret not in str(caught.value)


def test_without_its_token_a_job_can_be_neither_seen_nor_disturbed(
    make_fleet: Callable[..., Any], files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    """This holds for the status, for joining, and for a wrong hello, which would fail a job that waits for ranks."""
    fleet = make_fleet(token_file=files.write("tokens", f"night {NIGHT}\nday {DAY}\n"))
    night, day = (files.write(name, token) for name, token in (("n", NIGHT), ("d", DAY)))
    with fleet.worker(0, 2, job="night", token_file=night) as zero:
        future = zero.store().push_pull_async("w", np.ones(3, np.float32))
        shown = psum.fetch_status(fleet.addresses[0], settings=psum.Settings(token_file=day))
        assert not shown.jobs
        with pytest.raises(psum.ConnectError, match="UNAUTHENTICATED"):
            psum.fetch_status(fleet.addresses[0])
        with pytest.raises(psum.DeniedError):
            fleet.worker(1, 3, job="night", token_file=day)
        # Another process of the same rank. A job without tokens would refuse it with details of the first.
        with pytest.raises(psum.DeniedError, match="its token is not one of this job's"):
            fleet.worker(0, 2, job="night", token_file=day)
        with fleet.worker(1, 2, job="night", token_file=night) as one:
            one.store().push_pull("w", np.ones(3, np.float32))
        future.result(10)
    assert not any(token in caplog.text for token in (NIGHT, DAY))


def test_tokens_are_replaced_without_a_restart(make_fleet: Callable[..., Any], files: Files) -> None:
    """Both tokens are valid during a replacement. A removed token is not."""
    fleet = make_fleet(token_file=files.write("tokens", GENERAL))
    old, new = files.write("old", GENERAL), files.write("new", DAY)
    files.write("tokens", f"{GENERAL}\n{DAY}\n")
    assert [fleet.on_every_rank(1, total, token_file=token) for token in (old, new)] == [[1.0], [1.0]]
    files.write("tokens", DAY)
    with pytest.raises(psum.DeniedError):
        fleet.worker(0, 1, token_file=old)


@pytest.mark.parametrize(
    ("content", "text"),
    [("", "it contains no token"), ("short", "line 1: expected TOKEN or JOB TOKEN"), ("a\nb c d?\n", "line 2")],
)
def test_a_token_file_that_cannot_be_used_is_refused_without_showing_it(
    make_fleet: Callable[..., Any], files: Files, content: str, text: str
) -> None:
    """The error has the file and the line, but not the token."""
    with pytest.raises(psum.ConfigurationError, match=text) as caught:
        make_fleet(token_file=files.write("tokens", content))
    assert not re.search("short|d[?]", str(caught.value))


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "cannot be read: No such file"), ("two words", "expected one token"), ("\x00ab", "expected one token")],
)
def test_a_worker_with_a_bad_token_file_says_so(fleet: Any, files: Files, content: str | None, text: str) -> None:
    """The error comes before any connection."""
    path = files.write("token", content) if content is not None else str(files.directory / "none")
    with pytest.raises(psum.ConfigurationError, match=text):
        fleet.worker(0, 1, token_file=path)


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


def test_a_host_has_a_limited_number_of_streams(make_fleet: Callable[..., Any]) -> None:
    """One more is refused with an error, and accepted after another has ended."""
    fleet = make_fleet(max_streams=2)
    with fleet.worker(0, 3) as _, fleet.worker(1, 3), pytest.raises(psum.ConnectError, match="max_streams"):
        fleet.worker(2, 3, connect_timeout=2.0)
    assert fleet.on_every_rank(2, total, job="next") == [2.0, 2.0]


def test_an_aggregator_has_a_limited_number_of_jobs(make_fleet: Callable[..., Any]) -> None:
    """One more is refused with an error. Running jobs are not affected."""
    fleet = make_fleet(max_jobs=1)
    with fleet.worker(0, 1, job="first") as client:
        with pytest.raises(psum.ExhaustedError, match=r"job 'second' was refused: 1 jobs .* \(max_jobs\)"):
            fleet.worker(0, 1, job="second")
        assert total(client) == 1.0
    assert fleet.on_every_rank(1, total, job="second") == [1.0]


def push_new_keys(client: psum.Client, steps: int) -> None:
    store = client.store()
    for step in range(steps):
        store.push_pull(f"loss of step {step}", np.ones(400, np.float32))


def test_a_job_has_a_limited_number_of_shards(make_fleet: Callable[..., Any]) -> None:
    """A program that makes new keys in every step gets an error before it fills the aggregator's memory."""
    fleet = make_fleet(max_shards=20)
    with fleet.worker(0, 1, partition_bytes=1 << 10) as client, pytest.raises(psum.ExhaustedError, match="max_shards"):
        push_new_keys(client, 30)


@contextlib.contextmanager
def stream(address: str) -> Iterator[Any]:
    """Open a stream of bytes as any gRPC client could, and return functions to write and read."""
    channel = Credentials.of(psum.Settings()).channel(address, ())
    with channel:
        requests: list[bytes] = []
        filled = threading.Condition()

        def sent() -> Iterator[bytes]:
            while True:
                with filled:
                    if not filled.wait_for(lambda: bool(requests), 10):
                        return
                    yield requests.pop(0)

        method: Any = channel.stream_stream("/psum.v1.AggregatorService/Exchange")
        call = method(sent(), timeout=20)

        def write(message: bytes) -> None:
            with filled:
                requests.append(message)
                filled.notify()

        yield call, write
        call.cancel()
        write(b"")


def test_a_stranger_who_sends_nothing_is_shown_the_door(make_fleet: Callable[..., Any]) -> None:
    """After the hello timeout, the stream ends with an error."""
    fleet = make_fleet(hello_timeout=0.2)
    with stream(fleet.addresses[0]) as (call, _):
        message, _ = decode(pb.ExchangeResponse, next(call))
    assert "no hello within 0.2 s" in message.fault.text


def test_a_stranger_without_a_token_is_refused_before_anything_is_read(
    make_fleet: Callable[..., Any], files: Files
) -> None:
    """The error comes without any message from the client."""
    fleet = make_fleet(token_file=files.write("tokens", GENERAL))
    with stream(fleet.addresses[0]) as (call, _):
        message, _ = decode(pb.ExchangeResponse, next(call))
    assert message.fault.code == pb.FAULT_CODE_DENIED


def test_a_hello_of_megabytes_is_refused(fleet: Any) -> None:
    """The aggregator keeps nothing of it."""
    with stream(fleet.addresses[0]) as (call, write):
        hello = pb.Hello(protocol_version=PROTOCOL_VERSION, job="j", num_workers=1, worker="x" * (2 << 20))
        write(encode(pb.ExchangeRequest(hello=hello)))
        message, _ = decode(pb.ExchangeResponse, next(call))
    assert "a hello has at most" in message.fault.text


def test_secrets_are_not_in_the_command_line_the_log_or_the_errors(files: Files) -> None:
    """There is no flag for the token itself. `ps` shows only the file's path."""
    command = [sys.executable, "-m", "psum.cli", "aggregator", "--token-file", files.write("t", f"bad line {NIGHT}!")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "line 1" in done.stderr
    assert NIGHT not in done.stderr + done.stdout


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
