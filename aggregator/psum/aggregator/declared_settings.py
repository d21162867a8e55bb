"""The declarations of an aggregator's settings: names, defaults and meanings."""

import dataclasses
from typing import Final

from psum.planes import CHOICES, DEFAULT_DIRECTORY, DEFAULT_LIMIT, Limit
from psum.runtime import (
    BaseSettings,
    choice,
    duration,
    integer,
    items,
    processors,
    sensible_processes,
    setting,
    size,
    switch,
)
from psum.wire import parse_address

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
class DeclaredSettings(BaseSettings):
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
