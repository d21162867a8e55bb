"""The aggregator's metrics: their declarations and their present values.

docs/metrics.md is made from the declarations. Labels have few values: the jobs in progress and recently ended ones, the
operations, and the kinds of faults; never keys, ranks or addresses.
"""

from collections.abc import Iterator
from typing import Final

from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import Metric as Family

from psum.aggregator.observe.loop_monitor import LoopMonitor
from psum.aggregator.service.service import Service
from psum.aggregator.service.status import VERSION
from psum.runtime import Metric
from psum.runtime.prometheus import Families
from psum.v1 import aggregator_pb2 as pb

# Not "job": Prometheus sets that label itself, to the name of the scrape job.
_JOB: Final = ("job_name",)
_OPERATION: Final = (*_JOB, "operation")

BUILD: Final = Metric("psum_build_info", "gauge", "1, with the version of this aggregator.", ("version",))
READY: Final = Metric("psum_ready", "gauge", "1 while it takes workers; 0 while it ends or is full.")
PROCESS_RESTARTS: Final = Metric(
    "psum_process_restarts_total",
    "counter",
    "How often a process of the aggregator had ended and was started again (PSUM_PROCESSES).",
)
WORKER_CAPACITY: Final = Metric(
    "psum_worker_capacity",
    "gauge",
    "How many workers the file descriptors are enough for, including the connected ones.",
)
JOBS: Final = Metric("psum_jobs", "gauge", "Jobs in progress.")
MEMORY_BUDGET: Final = Metric(
    "psum_memory_budget_bytes", "gauge", "Memory that may be reserved for sums (PSUM_MEMORY_BUDGET); 0: no limit."
)
MEMORY_RESERVED: Final = Metric("psum_memory_reserved_bytes", "gauge", "Memory that is reserved for sums.")
SUMS_WAITING: Final = Metric("psum_sums_waiting", "gauge", "Sums that wait for a thread.")
LOOP_LAG: Final = Metric(
    "psum_event_loop_lag_seconds", "histogram", "How late the event loop was, measured four times a second."
)
REFUSALS: Final = Metric(
    "psum_refused_workers_total",
    "counter",
    "Workers that were refused before they belonged to a job. Each attempt counts.",
    ("kind",),
)
REFUSED_CONNECTIONS: Final = Metric(
    "psum_refused_connections_total",
    "counter",
    "Connections that ended before they belonged to a worker. On the gRPC port: without a call, mostly because their"
    " TLS handshake failed. On the data port: by kind (handshake, secret, silence).",
    ("port", "kind"),
)

WORKERS: Final = Metric("psum_workers", "gauge", "The size of the job.", _JOB)
WORKERS_CONNECTED: Final = Metric("psum_workers_connected", "gauge", "Workers whose stream is open.", _JOB)
HELD: Final = Metric("psum_held_bytes", "gauge", "Bytes that contributions and sums occupy now.", _JOB)
ROUNDS_WAITING: Final = Metric("psum_rounds_waiting", "gauge", "Rounds of shards that wait for a rank.", _JOB)
OLDEST_WAIT: Final = Metric(
    "psum_oldest_round_wait_seconds", "gauge", "How long the oldest waiting round has waited.", _JOB
)
OLDEST_MISSING: Final = Metric(
    "psum_oldest_round_missing_workers", "gauge", "How many workers the oldest waiting round lacks.", _JOB
)
MESSAGES_WAITING: Final = Metric(
    "psum_messages_waiting", "gauge", "Messages that wait to be sent, for all workers together.", _JOB
)
FAULTS: Final = Metric("psum_faults_total", "counter", "Reported failures of keys and of whole jobs.", (*_JOB, "kind"))
DUPLICATES: Final = Metric(
    "psum_duplicate_contributions_total",
    "counter",
    "Contributions that came a second time, for example after a reconnect.",
    _JOB,
)
RECONNECTS: Final = Metric("psum_reconnects_total", "counter", "Reconnects: streams that workers opened again.", _JOB)
RESTORES: Final = Metric(
    "psum_restored_sums_total", "counter", "Sums of an earlier process that workers gave back.", _JOB
)
RETURNED_CREDITS: Final = Metric(
    "psum_returned_credits_total",
    "counter",
    "Contributions whose credit was returned early, because their round waited for other workers.",
    _JOB,
)

MEMBERS: Final = Metric(
    "psum_elastic_members",
    "gauge",
    "Members of an elastic job: the ranks that are neither lost nor have left. Rounds wait for these.",
    _JOB,
)
LEAST_MEMBERS: Final = Metric(
    "psum_elastic_least_members", "gauge", "With fewer members an elastic job makes no sums (PSUM_ELASTIC).", _JOB
)
LOSSES: Final = Metric(
    "psum_elastic_losses_total",
    "counter",
    "Ranks of an elastic job that were lost, by reason: closed, silent, replaced, not come, not back, ended early,"
    " began anew, or told if another aggregator has decided it.",
    (*_JOB, "reason"),
)
JOINS: Final = Metric("psum_elastic_joins_total", "counter", "Processes that have joined a running elastic job.", _JOB)
DEPARTURES: Final = Metric(
    "psum_elastic_departures_total", "counter", "Ranks that have left an elastic job in good order.", _JOB
)
CANDIDATES: Final = Metric("psum_elastic_candidates", "gauge", "Processes that wait to join an elastic job.", _JOB)
SINCE_CHANGE: Final = Metric(
    "psum_elastic_unchanged_seconds",
    "gauge",
    "Seconds since the members of an elastic job have changed. Absent if they have not.",
    _JOB,
)

RECEIVED: Final = Metric("psum_received_bytes_total", "counter", "Payload received from workers.", _OPERATION)
SENT: Final = Metric("psum_sent_bytes_total", "counter", "Payload sent to workers.", _OPERATION)
CONTRIBUTIONS: Final = Metric("psum_contributions_total", "counter", "Contributions that counted.", _OPERATION)
ROUND_DURATION: Final = Metric(
    "psum_round_duration_seconds",
    "histogram",
    "From a round's first contribution to its result. Its count is the number of completed rounds.",
    _OPERATION,
)
ROUND_WAIT: Final = Metric(
    "psum_round_wait_seconds",
    "histogram",
    "From a round's first contribution to its last: how long it waited for its slowest worker.",
    _OPERATION,
)
SUM_TIME: Final = Metric(
    "psum_sum_seconds",
    "histogram",
    "How long it took to sum a shard of 64 KiB or more.",
    _OPERATION,
)

RELAY_RANKS: Final = Metric("psum_relay_ranks", "gauge", "The size of the group that it relays for.", _JOB)
RELAY_RANKS_CONNECTED: Final = Metric(
    "psum_relay_ranks_connected", "gauge", "Ranks of the group whose stream is open.", _JOB
)
RELAY_HELD: Final = Metric(
    "psum_relay_held_bytes", "gauge", "Bytes that contributions, forwarded sums and results of the group occupy.", _JOB
)
RELAY_ROUNDS_WAITING: Final = Metric(
    "psum_relay_rounds_waiting", "gauge", "Rounds of shards that wait for a rank of the group.", _JOB
)
RELAY_OUTSTANDING: Final = Metric(
    "psum_relay_outstanding_shards", "gauge", "Shards that were forwarded and have no result yet.", _JOB
)
RELAY_UPLINKS: Final = Metric(
    "psum_relay_uplinks", "gauge", "Aggregators that the group's sums are forwarded to.", _JOB
)
RELAY_UPLINKS_CONNECTED: Final = Metric(
    "psum_relay_uplinks_connected", "gauge", "How many of them the relay is connected to.", _JOB
)
RELAY_RECONNECTS: Final = Metric(
    "psum_relay_reconnects_total", "counter", "Streams to these aggregators that were opened again.", _JOB
)
RELAY_FORWARDED: Final = Metric(
    "psum_relay_forwarded_bytes_total", "counter", "Payload forwarded to these aggregators.", _JOB
)
RELAY_RESULTS: Final = Metric(
    "psum_relay_result_bytes_total", "counter", "Payload received from these aggregators.", _JOB
)
RELAY_RECEIVED: Final = Metric(
    "psum_relay_received_bytes_total", "counter", "Payload received from the group's workers.", _JOB
)
RELAY_SENT: Final = Metric("psum_relay_sent_bytes_total", "counter", "Payload sent to the group's workers.", _JOB)

METRICS: Final = (
    BUILD,
    READY,
    PROCESS_RESTARTS,
    WORKER_CAPACITY,
    JOBS,
    MEMORY_BUDGET,
    MEMORY_RESERVED,
    SUMS_WAITING,
    LOOP_LAG,
    REFUSALS,
    REFUSED_CONNECTIONS,
    WORKERS,
    WORKERS_CONNECTED,
    HELD,
    ROUNDS_WAITING,
    OLDEST_WAIT,
    OLDEST_MISSING,
    MESSAGES_WAITING,
    FAULTS,
    DUPLICATES,
    RECONNECTS,
    RESTORES,
    RETURNED_CREDITS,
    MEMBERS,
    LEAST_MEMBERS,
    LOSSES,
    JOINS,
    DEPARTURES,
    CANDIDATES,
    SINCE_CHANGE,
    RECEIVED,
    SENT,
    CONTRIBUTIONS,
    ROUND_DURATION,
    ROUND_WAIT,
    SUM_TIME,
    RELAY_RANKS,
    RELAY_RANKS_CONNECTED,
    RELAY_HELD,
    RELAY_ROUNDS_WAITING,
    RELAY_OUTSTANDING,
    RELAY_UPLINKS,
    RELAY_UPLINKS_CONNECTED,
    RELAY_RECONNECTS,
    RELAY_FORWARDED,
    RELAY_RESULTS,
    RELAY_RECEIVED,
    RELAY_SENT,
)

_PROCESS: Final = ProcessCollector(registry=None)


def collect(service: Service, loop_monitor: LoopMonitor, now: float) -> Iterator[Family]:
    """All metrics with their present values. Call it on the event loop; the result may be encoded in any thread."""
    families = Families(METRICS)
    _add_aggregator(families, service, loop_monitor)
    _add_jobs(families, service, now)
    _add_counters(families, service)
    _add_relays(families, service)
    yield from families
    yield from _PROCESS.collect()


def _add_aggregator(families: Families, service: Service, loop_monitor: LoopMonitor) -> None:
    registry = service.registry
    families.add(BUILD, 1, VERSION)
    families.add(READY, int(service.ready))
    # Only an aggregator of several processes survives the end of one.
    families.add(PROCESS_RESTARTS, 0)
    families.add(WORKER_CAPACITY, len(service.connections) + service.descriptors.left)
    families.add(JOBS, len({job.name for job in service.registries.jobs()}))
    families.add(MEMORY_BUDGET, registry.budget.limit_bytes)
    families.add(MEMORY_RESERVED, registry.budget.reserved_bytes)
    families.add(SUMS_WAITING, service.waiting_sums)
    families.add(LOOP_LAG, loop_monitor.lag)
    for kind, count in registry.counters.refusals.items():
        families.add(REFUSALS, count, kind)
    for (port, kind), count in service.refused_connections().items():
        families.add(REFUSED_CONNECTIONS, count, port, kind)


def _add_jobs(families: Families, service: Service, now: float) -> None:
    queued = service.queued_messages()
    for job in service.registry.jobs.values():
        families.add(WORKERS, job.num_workers, job.name)
        families.add(
            WORKERS_CONNECTED, sum(len(worker.ranks) for worker in job.workers.values() if worker.connected), job.name
        )
        families.add(HELD, job.held_bytes, job.name)
        families.add(ROUNDS_WAITING, len(job.open_shards), job.name)
        _, oldest = next(iter(job.open_shards.values()), (None, None))
        families.add(OLDEST_WAIT, 0.0 if oldest is None else now - (oldest.since or now), job.name)
        families.add(OLDEST_MISSING, 0 if oldest is None else oldest.missing, job.name)
        families.add(MESSAGES_WAITING, queued[job.name], job.name)
        if (elastic := job.elastic_status(now)) is not None:
            _add_elastic(families, job.name, elastic)


def _add_elastic(families: Families, name: str, elastic: pb.ElasticStatus) -> None:
    families.add(MEMBERS, elastic.members, name)
    families.add(LEAST_MEMBERS, elastic.min, name)
    families.add(JOINS, elastic.joins, name)
    families.add(DEPARTURES, elastic.departures, name)
    families.add(CANDIDATES, len(elastic.candidates), name)
    if elastic.changed_seconds:
        families.add(SINCE_CHANGE, elastic.changed_seconds, name)


def _add_counters(families: Families, service: Service) -> None:
    for name, counters in service.registry.counters.items():
        for kind, count in counters.faults.items():
            families.add(FAULTS, count, name, kind)
        for reason, count in counters.losses.items():
            families.add(LOSSES, count, name, reason)
        families.add(DUPLICATES, counters.duplicates, name)
        families.add(RECONNECTS, counters.reconnects, name)
        families.add(RESTORES, counters.restores, name)
        families.add(RETURNED_CREDITS, counters.returned_credits, name)
        for label, operation in (("sum", counters.sum), ("broadcast", counters.broadcast)):
            if not operation.contributions:
                # Many jobs never broadcast: no series for an operation without contributions.
                continue
            families.add(RECEIVED, operation.received_bytes, name, label)
            families.add(SENT, operation.sent_bytes, name, label)
            families.add(CONTRIBUTIONS, operation.contributions, name, label)
            families.add(ROUND_DURATION, operation.duration, name, label)
            families.add(ROUND_WAIT, operation.waiting, name, label)
            families.add(SUM_TIME, operation.summing, name, label)


def _add_relays(families: Families, service: Service) -> None:
    """Adds the groups that this process relays for. Their ranks are workers of an aggregator elsewhere, or here."""
    for job, uplinks, reconnects in service.registries.groups():
        families.add(RELAY_RANKS, job.num_workers, job.name)
        connected = sum(len(worker.ranks) for worker in job.workers.values() if worker.connected)
        families.add(RELAY_RANKS_CONNECTED, connected, job.name)
        families.add(RELAY_HELD, job.held_bytes, job.name)
        families.add(RELAY_ROUNDS_WAITING, len(job.open_shards), job.name)
        families.add(RELAY_OUTSTANDING, sum(uplink.outstanding_shards for uplink in uplinks), job.name)
        families.add(RELAY_UPLINKS, len(uplinks), job.name)
        families.add(RELAY_UPLINKS_CONNECTED, sum(uplink.connected for uplink in uplinks), job.name)
        families.add(RELAY_RECONNECTS, reconnects, job.name)
        families.add(RELAY_FORWARDED, sum(uplink.sent_bytes for uplink in uplinks), job.name)
        families.add(RELAY_RESULTS, sum(uplink.received_bytes for uplink in uplinks), job.name)
        operations = (job.counters.sum, job.counters.broadcast)
        families.add(RELAY_RECEIVED, sum(operation.received_bytes for operation in operations), job.name)
        families.add(RELAY_SENT, sum(operation.sent_bytes for operation in operations), job.name)
