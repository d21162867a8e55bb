"""A worker's metrics for Prometheus, if the settings ask for them (PSUM_METRICS_PORT)."""

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from psum.client.core.operation import Operation
from psum.client.core.session import Session
from psum.runtime import Metric, cannot_listen
from psum.wire.errors import ConfigurationError

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

_log = logging.getLogger(__name__)

INFO: Final = Metric("psum_client_info", "gauge", "1, with this worker's job and rank.", ("job_name", "rank"))
IN_PROGRESS: Final = Metric("psum_client_operations_in_progress", "gauge", "Operations under way.")
SHARDS_WAITING: Final = Metric("psum_client_shards_waiting", "gauge", "Shards that wait to be sent.")
UNDER_WAY: Final = Metric("psum_client_under_way_bytes", "gauge", "Bytes that count against the credit.")
TOTAL: Final = Metric(
    "psum_client_operation_seconds",
    "histogram",
    "From the beginning of an operation until its result is complete.",
    ("operation",),
)
STAGE: Final = Metric(
    "psum_client_stage_seconds",
    "histogram",
    "How long each shard waited to be sent (queue), and then for its result (exchange).",
    ("operation", "stage"),
)
SENT: Final = Metric("psum_client_sent_bytes_total", "counter", "Payload sent to aggregators.", ("operation",))
RECEIVED: Final = Metric(
    "psum_client_received_bytes_total", "counter", "Payload received from aggregators.", ("operation",)
)
STALLS: Final = Metric(
    "psum_client_credit_stalls_total", "counter", "How often shards had to wait for credit (PSUM_CREDIT_BYTES)."
)
STALL_SECONDS: Final = Metric(
    "psum_client_credit_stall_seconds_total", "counter", "How long shards waited for credit, all aggregators together."
)
RECONNECTS: Final = Metric(
    "psum_client_reconnects_total", "counter", "Reconnects: streams that this worker opened again."
)
RESTORES: Final = Metric(
    "psum_client_restored_sums_total",
    "counter",
    "Sums that this worker gave back to an aggregator that was started again.",
)
FAULTS: Final = Metric("psum_client_faults_total", "counter", "Failures that aggregators reported.", ("kind",))

METRICS: Final = (
    INFO,
    IN_PROGRESS,
    SHARDS_WAITING,
    UNDER_WAY,
    TOTAL,
    STAGE,
    SENT,
    RECEIVED,
    STALLS,
    STALL_SECONDS,
    RECONNECTS,
    RESTORES,
    FAULTS,
)

_OPERATIONS: Final = {Operation.SUM: "push_pull", Operation.BROADCAST: "broadcast"}


class Exporter:
    """Serves a client's metrics over HTTP in a thread of its own.

    Args:
        session: What the metrics are about.
        job: The name of the job.
        address: host:port; port 0 takes a free one.

    Attributes:
        address: Where it listens; empty if it could not listen.

    Raises:
        ConfigurationError: Prometheus' library is not installed.
    """

    def __init__(self, session: Session, job: str, address: str) -> None:
        try:
            from prometheus_client import start_http_server

            from psum.runtime.prometheus import registry_of
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                [f"metrics_port={address}: needs {error.name}, which is not installed: pip install 'psum[metrics]'"]
            ) from None
        self.address = ""
        host, _, port = address.rpartition(":")
        try:
            self._server, self._thread = start_http_server(
                int(port), host.strip("[]"), registry_of(lambda: collect(session, job))
            )
        except (OSError, OverflowError) as error:
            # No reason for a training to fail.
            _log.warning("%s", cannot_listen("PSUM_METRICS_PORT", "metrics", address, error))
            return
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Stops serving."""
        if self.address:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


def collect(session: Session, job: str) -> "Iterator[Family]":
    """Yields all metrics with their values of now."""
    from psum.runtime.prometheus import Families

    families = Families(METRICS)
    counters, load = session.counters, session.load()
    families.add(INFO, 1, job, str(session.rank))
    families.add(IN_PROGRESS, load.operations)
    families.add(SHARDS_WAITING, load.waiting_shards)
    families.add(UNDER_WAY, load.under_way_bytes)
    for operation, name in _OPERATIONS.items():
        counted = counters.operations[operation]
        if not counted.queue.count and not counted.total.count:
            continue
        families.add(TOTAL, counted.total, name)
        families.add(STAGE, counted.queue, name, "queue")
        families.add(STAGE, counted.exchange, name, "exchange")
        families.add(SENT, counted.sent_bytes, name)
        families.add(RECEIVED, counted.received_bytes, name)
    families.add(STALLS, counters.stalls)
    families.add(STALL_SECONDS, counters.stall_seconds)
    families.add(RECONNECTS, counters.reconnects)
    families.add(RESTORES, counters.restores)
    for kind, count in list(counters.faults.items()):
        families.add(FAULTS, count, kind)
    yield from families
