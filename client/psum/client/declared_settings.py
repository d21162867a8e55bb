"""The declarations of a worker's settings: names, defaults and meanings."""

import dataclasses

from psum.client.elastic_range import Elastic, parse_elastic
from psum.client.relay_levels import AUTO, Level, parse_levels, parse_relay
from psum.planes import CHOICES, DEFAULT_DIRECTORY, DEFAULT_LIMIT, Limit
from psum.runtime import (
    BaseSettings,
    TlsFiles,
    choice,
    duration,
    integer,
    items,
    parse_destinations,
    setting,
    size,
    switch,
)
from psum.wire import MAX_WORKERS, parse_address


def _metrics_port(text: str) -> str:
    if (address := parse_address(text if ":" in text else f"127.0.0.1:{text}")).startswith("unix:"):
        raise ValueError("expected a port or host:port")
    return address


def _weights(text: str) -> tuple[int, ...]:
    """The weights; none for 'auto'."""
    if text.strip() == "auto":
        return ()
    try:
        return items(integer(1, 1000))(text)
    except ValueError as error:
        raise ValueError(f"expected auto, or a number for each aggregator ({error})") from None


@dataclasses.dataclass(frozen=True)
class DeclaredSettings(BaseSettings):
    """The fields of `Settings`, without what is checked and derived."""

    job: str = setting("PSUM_JOB", default="default", parse=str, meaning="The job's name.")
    aggregators: tuple[str, ...] = setting(
        "PSUM_AGGREGATORS",
        default=(),
        default_text="none",
        parse=parse_destinations,
        meaning="The aggregators, as host:port or unix:/path, separated by commas; host-{0..15}:port stands for"
        " sixteen. All workers must have the same list.",
    )
    weights: tuple[int, ...] = setting(
        "PSUM_AGGREGATOR_WEIGHTS",
        default=(),
        default_text="auto",
        parse=_weights,
        meaning="Each aggregator's share of the bytes relative to the others, separated by commas; or auto: the shares"
        " that suit links of equal speed, by which aggregators run on hosts with workers and which on hosts of their"
        " own. All workers must have the same value. See docs/operating.md.",
    )
    rank: int = setting(
        "PSUM_RANK",
        "BYTEPS_GLOBAL_RANK",
        default=0,
        parse=integer(0, MAX_WORKERS - 1),
        meaning="This worker's rank, from 0.",
    )
    num_workers: int = setting(
        "PSUM_NUM_WORKERS", default=1, parse=integer(1, MAX_WORKERS), meaning="The number of worker processes."
    )
    elastic: Elastic | None = setting(  # noqa: RUF009 (a field, whatever its type)
        "PSUM_ELASTIC",
        default=None,
        default_text="off",
        parse=parse_elastic,
        meaning="Whether the job goes on when workers are lost: off, or min:max, the least number of workers with which"
        " it goes on, and the most that it may have. Without :max that is PSUM_NUM_WORKERS. All workers must have the"
        " same value. See docs/elastic.md.",
    )
    joining: bool = setting(
        "PSUM_JOIN",
        default=False,
        default_text="0",
        parse=switch,
        meaning="1: wait until the members of the running elastic job let this worker in; 0: take part from the first"
        " round. psum sees for itself that a rank was lost before, so this is seldom needed.",
    )
    leave_timeout: float = setting(
        "PSUM_LEAVE_TIMEOUT",
        default=25.0,
        default_text="25 s",
        parse=duration,
        meaning="How long a worker of an elastic job may go on after SIGTERM until it leaves at a step boundary. Then"
        " it ends at once.",
    )
    leave_status: int = setting(
        "PSUM_LEAVE_STATUS",
        default=0,
        default_text="0, or 143 in an Indexed Job",
        parse=integer(0, 255),
        meaning="The exit status with which a worker of an elastic job ends when it has left at a step boundary. An"
        " Indexed Job of Kubernetes takes a worker that ends with 0 for one that has done its work, and starts no"
        " other.",
    )
    local_rank: int = setting(
        "PSUM_LOCAL_RANK",
        "BYTEPS_LOCAL_RANK",
        default=0,
        parse=integer(0, MAX_WORKERS - 1),
        meaning="This worker's rank among those on its node.",
    )
    local_size: int = setting(
        "PSUM_LOCAL_SIZE",
        "BYTEPS_LOCAL_SIZE",
        default=1,
        parse=integer(1, MAX_WORKERS),
        meaning="The number of workers on this node.",
    )
    relay: str = setting(
        "PSUM_RELAY",
        default=AUTO,
        parse=parse_relay,
        meaning="The aggregator that sums the tensors of this node's workers first: its address, off, or auto for a"
        " listed aggregator on this node. Further levels follow after commas, with the number of ranks that each"
        " sums: node-7:50051,rack-3:50051/16. See docs/relays.md.",
    )
    partition_bytes: int = setting(
        "PSUM_PARTITION_BYTES",
        "BYTEPS_PARTITION_BYTES",
        default=2 << 20,
        default_text="2 MiB",
        parse=size,
        meaning="The most bytes that a shard has. With several aggregators it is divided by their number, but not below"
        " 512 KiB. All workers must have the same.",
    )
    credit_bytes: int = setting(
        "PSUM_CREDIT_BYTES",
        default=8 << 20,
        default_text="8 MiB",
        parse=size,
        meaning="Bytes that may be under way to one aggregator. Lower values honour priorities more strictly; higher"
        " values are faster over long distances.",
    )
    plane: str = setting(
        "PSUM_PLANE",
        default="auto",
        parse=choice(*CHOICES),
        meaning="How large payloads cross: shm (memory shared on a host), direct (a data connection), inline (gRPC),"
        " auto.",
    )
    shm_directory: str = setting(
        "PSUM_SHM_DIRECTORY",
        default=DEFAULT_DIRECTORY,
        parse=str,
        meaning="A directory on a tmpfs, for memory that is shared with aggregators on the same host.",
    )
    shm_limit: Limit = setting(  # noqa: RUF009 (a field, whatever its type)
        "PSUM_SHM_LIMIT",
        default=DEFAULT_LIMIT,
        parse=Limit.parse,
        meaning="How far psum may fill that directory's file system, as a part (50%) or a size (2GiB). Further"
        " payloads travel in messages. The rest is for other users, such as the processes of a DataLoader.",
    )
    device_buffers: int = setting(
        "PSUM_DEVICE_BUFFERS",
        default=2 << 30,
        default_text="2 GiB",
        parse=size,
        meaning="Bytes of host memory for PyTorch tensors of one GPU that are under way. Further tensors wait until"
        " earlier ones are done. A process group has its own.",
    )
    torch_lend_results: bool = setting(
        "PSUM_TORCH_LEND_RESULTS",
        default=True,
        default_text="1",
        parse=switch,
        meaning="1: PyTorch's DistributedDataParallel reads sums from memory shared with aggregators on this host; 0:"
        " psum copies them to its buckets first.",
    )
    torch_share_buffers: bool = setting(
        "PSUM_TORCH_SHARE_BUFFERS",
        default=True,
        default_text="1",
        parse=switch,
        meaning="1: move buckets of PyTorch's DistributedDataParallel to memory that aggregators on this host read; 0:"
        " copy them there in each step. See docs/torch.md.",
    )
    connect_timeout: float = setting(
        "PSUM_CONNECT_TIMEOUT",
        default=60.0,
        default_text="60 s",
        parse=duration,
        meaning="How long a worker waits at its start for aggregators that do not run yet.",
    )
    rank_timeout: float = setting(
        "PSUM_RANK_TIMEOUT",
        default=45.0,
        default_text="45 s",
        parse=duration,
        meaning="How long a worker waits at its start while another process has its rank: one that is being replaced"
        " may take its whole grace period to end, which is 30 s on Kubernetes.",
    )
    reconnect_timeout: float = setting(
        "PSUM_RECONNECT_TIMEOUT",
        default=120.0,
        default_text="120 s",
        parse=duration,
        meaning="How long a worker tries to reconnect to an aggregator.",
    )
    keepalive: float = setting(
        "PSUM_KEEPALIVE",
        default=10.0,
        default_text="10 s",
        parse=duration,
        meaning="Silence after which a worker probes a connection. It gives the connection up after as long again"
        " without an answer.",
    )
    keep_sums: bool = setting(
        "PSUM_KEEP_SUMS",
        default=True,
        default_text="1",
        parse=switch,
        meaning="1: keep the last sum of each shard, so that an aggregator that was started again can continue; 0: do"
        " not.",
    )
    round_timeout: float = setting(
        "PSUM_ROUND_TIMEOUT",
        default=600.0,
        default_text="600 s",
        parse=duration,
        meaning="How long a push-pull may wait for its sum.",
    )
    check_every: int = setting(
        "PSUM_CHECK_EVERY",
        default=0,
        default_text="never",
        parse=integer(0, 2**63 - 1),
        meaning="Number of updates after which a Trainer or Module checks that its parameters are the same on all"
        " ranks. All workers must have the same value. See docs/drift.md.",
    )
    tls_ca: str = setting(
        "PSUM_TLS_CA",
        default="",
        default_text="none",
        parse=str,
        meaning="A PEM file with the authorities of the aggregators' certificates. With it, psum uses TLS, except on"
        " unix sockets.",
    )
    tls_cert: str = setting(
        "PSUM_TLS_CERT",
        default="",
        default_text="none",
        parse=str,
        meaning="A PEM file with this worker's certificate, if aggregators ask for one.",
    )
    tls_key: str = setting(
        "PSUM_TLS_KEY", default="", default_text="none", parse=str, meaning="A PEM file with the certificate's key."
    )
    tls_server_name: str = setting(
        "PSUM_TLS_SERVER_NAME",
        default="",
        default_text="the host in the address",
        parse=str,
        meaning="The name that the aggregators' certificates must have.",
    )
    token_file: str = setting(
        "PSUM_TOKEN_FILE", default="", default_text="none", parse=str, meaning="A file with the job's token."
    )
    insecure: bool = setting(
        "PSUM_INSECURE",
        default=False,
        default_text="off",
        parse=switch,
        meaning="Send the token to other machines without TLS. Anybody on the way can then read and use it.",
    )
    metrics_port: str = setting(
        "PSUM_METRICS_PORT",
        default="",
        default_text="none",
        parse=_metrics_port,
        meaning="A port, or host:port, where Prometheus can read this worker's metrics. psum adds the local rank to"
        " the port.",
    )
    trace_dir: str = setting(
        "PSUM_TRACE_DIR",
        default="",
        default_text="none",
        parse=str,
        meaning="A directory for a timeline: each rank writes rank-N.json. See docs/slow-steps.md.",
    )
    trace_start_step: int = setting(
        "PSUM_TRACE_START_STEP",
        "BYTEPS_TRACE_START_STEP",
        default=10,
        parse=integer(0, 2**63 - 1),
        meaning="The first step of the timeline. The training's first step is 0.",
    )
    trace_end_step: int = setting(
        "PSUM_TRACE_END_STEP",
        "BYTEPS_TRACE_END_STEP",
        default=20,
        parse=integer(0, 2**63 - 1),
        meaning="The last step of the timeline. psum writes the file after that step, or when the client is closed.",
    )
    fault_file: str = setting(
        "PSUM_FAULT_FILE",
        default="",
        default_text="none",
        parse=str,
        meaning="A file for the first failure that an aggregator reports to this worker. `psum launch` sets it, to"
        " distinguish causes from consequences.",
    )
    log_level: str = setting(
        "PSUM_LOG_LEVEL",
        default="warning",
        parse=choice("debug", "info", "warning", "error"),
        meaning="The lowest level that is logged: debug, info, warning or error.",
    )
    log_format: str = setting(
        "PSUM_LOG_FORMAT",
        default="text",
        parse=choice("text", "json"),
        meaning="The format of log lines: json or text. With text, the program's own logging takes precedence.",
    )

    @property
    def relays(self) -> tuple[Level, ...]:
        """The relays that PSUM_RELAY names, the nearest first."""
        return parse_levels(self.relay)

    @property
    def destinations(self) -> tuple[str, ...]:
        """The addresses that the worker connects to, if it does not find a relay by itself."""
        relays = self.relays
        return (relays[0].address,) if relays else self.aggregators

    @property
    def tls(self) -> TlsFiles:
        """The files for TLS; all empty if the worker does not speak TLS."""
        return TlsFiles(ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key)
