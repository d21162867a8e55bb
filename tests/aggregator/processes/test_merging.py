"""What several processes say, as what one aggregator says."""

import pytest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family

from psum.aggregator.processes.merged_metrics import MergedMetrics
from psum.aggregator.processes.merged_status import merged_rates, merged_status
from psum.v1 import aggregator_pb2 as pb


def families(sent: float, ready: int, held: float, waits: float, jobs: tuple[str, ...] = ("a",)) -> list[Family]:
    counter = CounterMetricFamily("psum_sent_bytes_total", "Sent.", labels=["job_name"])
    gauge = GaugeMetricFamily("psum_held_bytes", "Held.", labels=["job_name"])
    for job in jobs:
        counter.add_metric([job], sent)
        gauge.add_metric([job], held)
    lag = HistogramMetricFamily("psum_event_loop_lag_seconds", "Lag.", labels=[])
    lag.add_metric([], [("0.1", 2.0), ("+Inf", 3.0)], 0.5)
    return [
        counter,
        gauge,
        lag,
        GaugeMetricFamily("psum_ready", "Ready.", ready),
        GaugeMetricFamily("psum_oldest_round_wait_seconds", "Waits.", waits),
    ]


def values(merging: MergedMetrics) -> dict[str, float]:
    return {s.name + "".join(f" {v}" for v in s.labels.values()): s.value for f in merging.merged() for s in f.samples}


def test_counters_and_sizes_are_added_and_states_are_the_worst() -> None:
    """One series for each pair of name and labels, as one process would have."""
    merging = MergedMetrics()
    merging.update(0, families(100, 1, 10, 0.5))
    merging.update(1, families(200, 0, 20, 1.5, jobs=("a", "b")))
    assert values(merging) == {
        "psum_sent_bytes_total a": 300,
        "psum_sent_bytes_total b": 200,
        "psum_held_bytes a": 30,
        "psum_held_bytes b": 20,
        "psum_event_loop_lag_seconds_bucket 0.1": 4,
        "psum_event_loop_lag_seconds_bucket +Inf": 6,
        "psum_event_loop_lag_seconds_count": 6,
        "psum_event_loop_lag_seconds_sum": 1.0,
        "psum_ready": 0,
        "psum_oldest_round_wait_seconds": 1.5,
    }


def test_counters_do_not_go_back_when_a_process_is_started_again() -> None:
    """Prometheus would take a smaller number for a new beginning, and count everything again."""
    merging = MergedMetrics()
    merging.update(0, families(100, 1, 10, 0))
    merging.update(1, families(200, 1, 20, 0))
    merging.end(1)
    assert values(merging)["psum_sent_bytes_total a"] == 300
    assert values(merging)["psum_held_bytes a"] == 10
    merging.update(1, families(5, 1, 1, 0))
    assert values(merging)["psum_sent_bytes_total a"] == 305
    assert values(merging)["psum_event_loop_lag_seconds_count"] == 9
    merging.end(1)
    merging.update(1, families(7, 1, 1, 0))
    assert values(merging)["psum_sent_bytes_total a"] == 312


def test_losses_that_all_processes_hear_of_are_counted_once() -> None:
    """The loss of a worker is known to each process. A process that was started again does not know of earlier ones."""

    def losses(count: float) -> list[Family]:
        family = CounterMetricFamily("psum_elastic_losses_total", "Losses.", labels=["job_name"])
        family.add_metric(["a"], count)
        return [family]

    merging = MergedMetrics()
    merging.update(0, losses(3))
    merging.update(1, losses(3))
    assert values(merging) == {"psum_elastic_losses_total a": 3}
    merging.end(0)
    merging.end(1)
    merging.update(1, losses(1))
    assert values(merging) == {"psum_elastic_losses_total a": 3}


def test_a_job_that_no_process_knows_is_forgotten() -> None:
    """A name that comes again later begins at 0."""
    merging = MergedMetrics()
    merging.update(0, families(100, 1, 10, 0))
    merging.end(0)
    merging.update(0, families(1, 1, 1, 0, jobs=("b",)))
    assert "psum_sent_bytes_total a" not in values(merging)
    merging.update(0, families(3, 1, 1, 0))
    assert values(merging)["psum_sent_bytes_total a"] == 3


def worker(rank: int, *, connected: bool = True, behind_seconds: float = 0.0) -> pb.WorkerStatus:
    return pb.WorkerStatus(rank=rank, connected=connected, received_bytes=10, behind_seconds=behind_seconds)


def test_a_job_is_one_job() -> None:
    """A worker is connected if it is connected to all processes; bytes are added; the oldest rounds come first."""
    rounds = [pb.RoundStatus(key=f"k{n}", waiting_seconds=n, waiting_for=[1]) for n in (3, 1, 2)]
    first = pb.JobStatus(name="a", num_workers=3, keys=5, held_bytes=1, rounds_completed=2, rounds=rounds[:1])
    first.workers.extend([worker(0), worker(1, behind_seconds=1), worker(2)])
    second = pb.JobStatus(name="a", num_workers=3, keys=4, held_bytes=2, rounds_completed=3, rounds=rounds[1:])
    second.workers.extend([worker(0), worker(1, connected=False, behind_seconds=3)])
    merged = merged_status(
        [
            pb.GetStatusResponse(incarnation=7, jobs=[first], cpu_seconds=1, loop_lag_seconds=0.1, addresses=["h:1"]),
            pb.GetStatusResponse(
                incarnation=8,
                jobs=[second],
                cpu_seconds=2,
                loop_lag_seconds=0.2,
                memory_reserved_bytes=5,
                draining=True,
            ),
        ]
    )
    [job] = merged.jobs
    assert [(w.rank, w.connected, w.received_bytes, w.behind_seconds) for w in job.workers] == [
        (0, True, 20, 0),
        (1, False, 20, 3),
        (2, False, 10, 0),
    ]
    assert (job.keys, job.held_bytes, job.rounds_completed) == (5, 3, 5)
    assert [r.key for r in job.rounds] == ["k3", "k2", "k1"]
    assert (merged.incarnation, list(merged.addresses), merged.cpu_seconds) == (7, ["h:1"], 3)
    assert (merged.loop_lag_seconds, merged.memory_reserved_bytes, merged.draining) == (0.2, 5, True)


def test_the_same_ended_job_is_listed_once() -> None:
    """Two runs of one name are two jobs, and the failure of one process is the job's."""
    merged = merged_status(
        [
            pb.GetStatusResponse(
                ended=[
                    pb.EndedJob(name="a", joined=[0], ended_seconds=1),
                    pb.EndedJob(name="b", ended_seconds=2),
                    pb.EndedJob(name="a", ended_seconds=9),
                ]
            ),
            pb.GetStatusResponse(
                ended=[
                    pb.EndedJob(name="a", joined=[0, 1], ended_seconds=1.5, failure="rank 1 vanished"),
                    pb.EndedJob(name="a", ended_seconds=9.5),
                ]
            ),
        ]
    )
    assert [(e.name, list(e.joined), e.ended_seconds, e.failure) for e in merged.ended] == [
        ("a", [0, 1], 1, "rank 1 vanished"),
        ("b", [], 2, ""),
        ("a", [], 9, ""),
    ]


@pytest.mark.parametrize(
    ("rates", "together"),
    [
        ([[(1.0, 2.0), (3.0, 4.0)], [(10.0, 20.0)]], [(1.0, 2.0), (13.0, 24.0)]),
        ([], []),
    ],
)
def test_throughput_is_added_by_time(
    rates: list[list[tuple[float, float]]], together: list[tuple[float, float]]
) -> None:
    """A process that was started later has fewer samples, the last ones."""
    assert merged_rates(rates) == together
