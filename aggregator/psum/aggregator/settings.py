"""The aggregator's settings."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from psum.aggregator.former_names import without_workers_files
from psum.aggregator.process_addresses import nth_address, nth_port
from psum.planes import CHOICES, DEFAULT_DIRECTORY, DEFAULT_LIMIT, Limit
from psum.runtime import (
    BaseSettings,
    TlsFiles,
    choice,
    declarations,
    duration,
    integer,
    items,
    load,
    processors,
    sensible_processes,
    setting,
    size,
    switch,
)
from psum.wire import is_local, parse_address, split_address

#: A smaller budget probably lacks its unit.
_LEAST_BUDGET_BYTES: Final = 1 << 20

#: The effects of settings that come by an old name, for the warning.
_EFFECTS: Final = {
    "insecure": "anybody who reaches its addresses can read and change sums",
    "tls_cert": "it shows this certificate to workers",
    "tls_key": "it uses this key",
    "tls_client_ca": "workers must bring a certificate from this authority",
    "token_file": "workers must bring a token from this file",
}


#: The most processes of one aggregator.
_MAX_PROCESSES: Final = 64


def _processes(text: str) -> int:
    if text.strip().lower() == "auto":
        return sensible_processes(processors())
    try:
        return integer(1, _MAX_PROCESSES)(text)
    except ValueError as error:
        raise ValueError(f"{error}, or auto") from None


def _http_address(text: str) -> str:
    if (address := parse_address(text if ":" in text else f"127.0.0.1:{text}")).startswith("unix:"):
        raise ValueError("expected a port, host:port or [ipv6]:port")
    return address


@dataclasses.dataclass(frozen=True)
class Settings(BaseSettings):
    """The settings of one aggregator. Every field is a flag of `psum aggregator` and an environment variable."""

    listen: tuple[str, ...] = setting(
        "PSUM_LISTEN",
        default=("127.0.0.1:50051",),
        default_text="127.0.0.1:50051",
        parse=items(parse_address),
        meaning="Addresses to serve on: host:port (port 0: any free port), [ipv6]:port or unix:/path.",
    )
    data_port: int = setting(
        "PSUM_DATA_PORT",
        default=0,
        default_text="any free port",
        parse=integer(0, 65535),
        meaning="The port for data connections, on the same addresses. Workers use them on the planes shm and direct.",
    )
    processes: int = setting(
        "PSUM_PROCESSES",
        default=1,
        parse=_processes,
        meaning="How many processes share the work: a number, or auto for a quarter of the usable processors, from 1"
        " to 8. Workers list the address of the first one. Each further process has ports that are 2 higher than those"
        " of the one before, or unix:/path.1, .2 and so on.",
    )
    insecure: bool = setting(
        "PSUM_AGGREGATOR_INSECURE",
        deprecated=("PSUM_INSECURE",),
        default=False,
        default_text="off",
        parse=switch,
        meaning="Serve on addresses that other machines can reach. Anybody there can then read and change sums.",
    )
    tls_cert: str = setting(
        "PSUM_AGGREGATOR_TLS_CERT",
        deprecated=("PSUM_TLS_CERT",),
        default="",
        default_text="none",
        parse=str,
        meaning="A PEM file with the aggregator's certificate, read again when it changes. It enables TLS, except on"
        " unix sockets.",
    )
    tls_key: str = setting(
        "PSUM_AGGREGATOR_TLS_KEY",
        deprecated=("PSUM_TLS_KEY",),
        default="",
        default_text="none",
        parse=str,
        meaning="A PEM file with the certificate's key.",
    )
    tls_client_ca: str = setting(
        "PSUM_AGGREGATOR_TLS_CLIENT_CA",
        deprecated=("PSUM_TLS_CA",),
        default="",
        default_text="none",
        parse=str,
        meaning="A PEM file with the authorities of the workers' certificates. Without it, workers need no"
        " certificate.",
    )
    token_file: str = setting(
        "PSUM_AGGREGATOR_TOKEN_FILE",
        deprecated=("PSUM_TOKEN_FILE",),
        default="",
        default_text="none",
        parse=str,
        meaning="A file with lines TOKEN or JOB TOKEN, read again when it changes. Workers must send their job's"
        " token.",
    )
    worker_timeout: float = setting(
        "PSUM_WORKER_TIMEOUT",
        default=30.0,
        default_text="30 s",
        parse=duration,
        meaning="How long the aggregator keeps the place of a worker that vanished. Then its job fails on all ranks.",
    )
    closed_timeout: float = setting(
        "PSUM_CLOSED_TIMEOUT",
        default=0.0,
        default_text="as PSUM_WORKER_TIMEOUT",
        parse=duration,
        meaning="The same for a worker that had taken part in some round and whose connection was closed, as by the end"
        " of its process, rather than silent. One that lives is back within two seconds, where nothing is in its way."
        " Not for relays, which come back when they were started again.",
    )
    elastic_timeout: float = setting(
        "PSUM_ELASTIC_TIMEOUT",
        default=5.0,
        default_text="5 s",
        parse=duration,
        meaning="How long a worker of an elastic job may be out of touch. Then the job goes on without it, for good.",
    )
    elastic_closed_timeout: float = setting(
        "PSUM_ELASTIC_CLOSED_TIMEOUT",
        default=1.0,
        default_text="1 s",
        parse=duration,
        meaning="The same for a worker whose connection was closed, as by the end of its process, rather than silent."
        " It must suffice for a worker that lives to connect again.",
    )
    round_timeout: float = setting(
        "PSUM_ROUND_TIMEOUT",
        default=600.0,
        default_text="600 s",
        parse=duration,
        meaning="How long a round may wait for its slowest rank.",
    )
    warn_after: float = setting(
        "PSUM_WARN_AFTER",
        default=30.0,
        default_text="30 s",
        parse=duration,
        meaning="How long a round waits until the log and the waiting workers name the missing ranks. They do so again"
        " each time this doubles.",
    )
    keepalive: float = setting(
        "PSUM_KEEPALIVE",
        default=10.0,
        default_text="10 s",
        parse=duration,
        meaning="Silence after which the aggregator probes a connection. It gives the connection up after as long"
        " again without an answer.",
    )
    hello_timeout: float = setting(
        "PSUM_HELLO_TIMEOUT",
        default=10.0,
        default_text="10 s",
        parse=duration,
        meaning="How long a new connection may take to send its first message.",
    )
    grace: float = setting(
        "PSUM_GRACE",
        default=10.0,
        default_text="10 s",
        parse=duration,
        meaning="How long open rounds may take to finish after SIGTERM.",
    )
    memory_budget: int = setting(
        "PSUM_MEMORY_BUDGET",
        default=0,
        default_text="no limit",
        parse=size,
        meaning="Memory for the sums of all jobs. Keys that do not fit are refused when they are declared.",
    )
    max_jobs: int = setting(
        "PSUM_MAX_JOBS", default=1000, parse=integer(1, 10**9), meaning="How many jobs may be in progress."
    )
    max_shards: int = setting(
        "PSUM_MAX_SHARDS",
        default=500_000,
        parse=integer(1, 10**9),
        meaning="How many shards one job may declare; every key has at least one.",
    )
    max_streams: int = setting(
        "PSUM_MAX_STREAMS",
        default=1024,
        parse=integer(1, 10**9),
        meaning="How many workers may be connected from one host. A proxy with all workers behind it counts as one"
        " host.",
    )
    relaying: bool = setting(
        "PSUM_RELAYING",
        default=True,
        default_text="1",
        parse=switch,
        meaning="1: forward the sums of a host's workers to other aggregators if the workers ask for it (PSUM_RELAY);"
        " 0: refuse such workers.",
    )
    relay_tls_ca: str = setting(
        "PSUM_RELAY_TLS_CA",
        default="",
        default_text="as PSUM_AGGREGATOR_TLS_CLIENT_CA",
        parse=str,
        meaning="A PEM file with the authorities of the certificates of aggregators that this one forwards to. It shows"
        " them its own certificate.",
    )
    relay_tls_server_name: str = setting(
        "PSUM_RELAY_TLS_SERVER_NAME",
        default="",
        default_text="the host in the address",
        parse=str,
        meaning="The name in the certificates of those aggregators, if it differs from their address.",
    )
    relay_token_file: str = setting(
        "PSUM_RELAY_TOKEN_FILE",
        default="",
        default_text="the token that the workers brought last",
        parse=str,
        meaning="A file with the token for those aggregators, read again for each connection.",
    )
    plane: str = setting(
        "PSUM_PLANE",
        default="auto",
        parse=choice(*CHOICES),
        meaning="How large payloads travel to aggregators that this one forwards to: auto, inline or direct; shm counts"
        " as auto.",
    )
    credit_bytes: int = setting(
        "PSUM_CREDIT_BYTES",
        default=8 << 20,
        default_text="8 MiB",
        parse=size,
        meaning="Bytes that may be under way to one aggregator that this one forwards to.",
    )
    connect_timeout: float = setting(
        "PSUM_CONNECT_TIMEOUT",
        default=60.0,
        default_text="60 s",
        parse=duration,
        meaning="How long it waits for aggregators that it forwards to and that do not run yet.",
    )
    reconnect_timeout: float = setting(
        "PSUM_RECONNECT_TIMEOUT",
        default=120.0,
        default_text="120 s",
        parse=duration,
        meaning="How long it tries to reconnect to an aggregator that it forwards to.",
    )
    http: str = setting(
        "PSUM_HTTP",
        default="",
        default_text="none",
        parse=_http_address,
        meaning="A port on loopback, or host:port, for the status page, metrics and probes. It has no TLS: everybody"
        " who can reach it can read them.",
    )
    reflection: bool = setting(
        "PSUM_REFLECTION",
        default=False,
        default_text="off",
        parse=switch,
        meaning="Describe the services to gRPC tools such as grpcurl.",
    )
    shm_directory: str = setting(
        "PSUM_SHM_DIRECTORY",
        default=DEFAULT_DIRECTORY,
        parse=str,
        meaning="A directory on a tmpfs, for memory that is shared with workers on the same host.",
    )
    shm_limit: Limit = setting(  # noqa: RUF009 (a field, whatever its type)
        "PSUM_SHM_LIMIT",
        default=DEFAULT_LIMIT,
        parse=Limit.parse,
        meaning="How far psum may fill that directory's file system, as a part (50%) or a size (2GiB). Further"
        " payloads travel in messages. The rest is for other users, such as the processes of a DataLoader.",
    )
    threads: int = setting(
        "PSUM_THREADS",
        default=min(8, processors()),
        default_text="one for each usable processor, at most 8",
        parse=integer(1, 256),
        meaning="Threads that sum. The default respects affinity and limits of processor time (cgroups).",
    )
    log_level: str = setting(
        "PSUM_LOG_LEVEL",
        default="info",
        parse=choice("debug", "info", "warning", "error"),
        meaning="The lowest level that is logged: debug, info, warning or error.",
    )
    log_format: str = setting(
        "PSUM_LOG_FORMAT",
        default="text",
        parse=choice("text", "json"),
        meaning="The format of log lines: text or json.",
    )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ, **given: Any) -> "Settings":
        """The settings from the environment. Those given here take precedence (text is parsed, None is ignored).

        Raises:
            ConfigurationError: Some settings are wrong; it lists all mistakes.
        """
        own, remarks = without_workers_files(environ, given)
        return load(cls, own, given, remarks)

    @property
    def tls(self) -> TlsFiles:
        """The files for TLS; empty without TLS."""
        return TlsFiles(ca=self.tls_client_ca, cert=self.tls_cert, key=self.tls_key, ca_setting="tls_client_ca")

    def _ports(self, process: int) -> Iterator[tuple[str, str, int]]:
        """The ports that one process needs, each with its setting and host; 0 for any free one.

        Raises:
            ValueError: There is no such port.
        """
        hosts = []
        for address in self.listen:
            # A further unix socket may have too long a path.
            own = nth_address(address, process)
            if not own.startswith("unix:"):
                hosts.append(split_address(own)[0])
                yield "listen", *split_address(own)
        for host in dict.fromkeys(hosts):
            yield "data_port", host, nth_port(self.data_port, process)

    def _ports_twice(self) -> Iterator[str]:
        """A sentence for each pair of settings with the same port, and for a port that does not exist."""
        ports: list[tuple[str, str, int]] = []
        for process in range(self.processes):
            of = f" of process {process}" if process else ""
            try:
                ports += [(f"{name}{of}", host, port) for name, host, port in self._ports(process)]
            except ValueError as error:
                yield f"processes={self.processes}: {error}"
                return
            if not process and self.http:
                ports.append(("http", *split_address(self.http)))
        for number, (name, host, port) in enumerate(ports):
            for other, other_host, other_port in ports[:number]:
                if port and port == other_port and (host == other_host or {host, other_host} & {"0.0.0.0", "::"}):
                    yield f"{other} and {name}: both are port {port} on {host}; each needs one of its own"
                    break

    def mistakes(self) -> Iterator[str]:
        """A sentence for each mistake in the combination of values."""
        if not self.listen:
            yield "listen: at least one address is needed"
        if self.elastic_closed_timeout > self.elastic_timeout:
            yield (
                f"a worker whose connection was closed would be waited for longer, {self.elastic_closed_timeout:g} s"
                f" (PSUM_ELASTIC_CLOSED_TIMEOUT), than one that is silent, {self.elastic_timeout:g} s"
                " (PSUM_ELASTIC_TIMEOUT)"
            )
        if self.credit_bytes < 1:
            yield "a credit of 0 bytes would let nothing pass to other aggregators (PSUM_CREDIT_BYTES)"
        if bool(self.tls_cert) is not bool(self.tls_key):
            yield (
                "tls_cert and tls_key: both are needed, or none"
                " (PSUM_AGGREGATOR_TLS_CERT and PSUM_AGGREGATOR_TLS_KEY, or flags)"
            )
        if self.tls_client_ca and not self.tls_cert:
            yield (
                f"tls_client_ca={self.tls_client_ca}: to ask workers for certificates, this side needs tls_cert and"
                " tls_key"
            )
        yield from self._ports_twice()
        if not self.insecure:
            yield from self._exposed()

    def warnings(self) -> Iterator[str]:
        """A sentence for each valid but unlikely setting."""
        yield from self.remarks
        for name, declared in declarations(Settings).items():
            old = self.sources.get(name)
            if old in declared.deprecated and (name != "insecure" or any(self._exposed())):
                yield (
                    f"{old} is a worker's setting, and is taken for this aggregator's own as before: {_EFFECTS[name]}."
                    f" If that is meant, call it {declared.variables[0]}; otherwise unset {old} for this process"
                )
        if self.tls_cert and all(address.startswith("unix:") for address in self.listen):
            yield "tls_cert has no effect: TLS is not spoken on unix sockets, and there is no other address"
        if 0 < self.memory_budget < _LEAST_BUDGET_BYTES:
            yield (
                f"a memory budget of {self.memory_budget} bytes holds hardly any key; is a unit missing, as in 8GiB?"
                " (PSUM_MEMORY_BUDGET)"
            )
        if self.round_timeout <= self.worker_timeout and "round_timeout" in self.sources:
            yield (
                f"a round fails after {self.round_timeout:g} s (PSUM_ROUND_TIMEOUT), before a vanished worker is given"
                f" up after {self.worker_timeout:g} s (PSUM_WORKER_TIMEOUT): errors will name a slow worker where one"
                " has died"
            )
        if self.warn_after >= self.round_timeout and "warn_after" in self.sources:
            yield (
                f"a round that waits is reported after {self.warn_after:g} s (PSUM_WARN_AFTER), but fails after"
                f" {self.round_timeout:g} s (PSUM_ROUND_TIMEOUT): no report will come before"
            )
        if 2 * self.keepalive > self.round_timeout and "keepalive" in self.sources:
            yield (
                f"a silent connection is given up after twice {self.keepalive:g} s (PSUM_KEEPALIVE), but a round fails"
                f" after {self.round_timeout:g} s (PSUM_ROUND_TIMEOUT): errors will name a slow worker where a"
                " connection is broken"
            )

    def _exposed(self) -> Iterator[str]:
        """A sentence for each address that other machines can reach without authentication or encryption."""
        for address in self.listen:
            if is_local(address):
                continue
            if not self.tls_cert:
                yield (
                    f"listen={address}: other machines can reach this address, and connections would not be encrypted;"
                    " give a certificate (tls_cert, tls_key), listen on a loopback address or a unix socket, or say"
                    " --insecure"
                )
            elif not self.tls_client_ca and not self.token_file:
                yield (
                    f"listen={address}: other machines can reach this address, and anybody there could join a job; ask"
                    " workers for certificates (tls_client_ca) or for tokens (token_file), or say --insecure"
                )
