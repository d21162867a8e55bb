"""A client's statistics, in the program and for Prometheus."""

import logging
import sys
import time
import urllib.request
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from psum import client as psum
from psum.client.observe.exporter import METRICS
from psum.client.settings import next_port
from tests.polling import wait_until

#: How long anything in these tests may take.
PATIENCE_SECONDS = 30.0


def scraped(client: psum.Client) -> str:
    """Scrapes the metrics as Prometheus does."""
    with urllib.request.urlopen(f"http://{client.metrics_address}/metrics", timeout=PATIENCE_SECONDS) as response:
        text: str = response.read().decode()
    return text


def test_operations_and_bytes_are_counted(fleet: Any) -> None:
    """Each operation and each shard counts once, with the payload that crossed."""

    def work(client: psum.Client) -> psum.Statistics:
        store = client.store()
        for _ in range(3):
            store.push_pull("w", np.ones(700_000, np.float32))
        store.broadcast("b", np.ones(5, np.float64))
        return client.statistics()

    root, other = fleet.on_every_rank(2, work, partition_bytes=1 << 20)
    assert root.push_pull.total.count == 3
    assert root.push_pull.queue.count == root.push_pull.exchange.count == 9
    assert root.push_pull.sent_bytes == root.push_pull.received_bytes == 3 * 2_800_000
    assert (root.broadcast.sent_bytes, root.broadcast.received_bytes) == (40, 0)
    assert (other.broadcast.sent_bytes, other.broadcast.received_bytes) == (0, 40)
    assert (root.in_progress, root.reconnects, root.faults) == (0, 0, {})


def test_waiting_for_a_slow_rank_is_time_in_the_exchange(fleet: Any) -> None:
    """The fast rank counts the wait as exchange. The slow rank waits for nobody."""

    def work(client: psum.Client) -> psum.Statistics:
        if client.rank == 1:
            wait_until(lambda: fleet.servers[0]._service.status().jobs[0].rounds_waiting)
            time.sleep(0.5)
        client.store().push_pull("w", np.ones(5, np.float32))
        return client.statistics()

    fast, slow = fleet.on_every_rank(2, work)
    assert fast.push_pull.exchange.seconds >= 0.5
    assert fast.push_pull.queue.mean_seconds < 0.25
    assert fast.push_pull.total.seconds >= fast.push_pull.exchange.seconds
    assert slow.push_pull.total.mean_seconds < 0.4
    assert fast.push_pull.exchange.buckets["0.25"] == 0
    assert fast.push_pull.exchange.buckets["+Inf"] == 1


def test_a_stall_for_want_of_credit_is_counted_once(fleet: Any) -> None:
    """A stall counts once, with its duration."""
    with fleet.worker(0, 1, credit_bytes=1 << 20, partition_bytes=1 << 20, plane="inline") as client:
        client.store().push_pull("w", np.ones(2 << 18, np.float32))
        counted = client.statistics()
    assert counted.credit_stalls == 1
    assert 0 < counted.credit_stall_seconds < counted.push_pull.total.seconds


def test_reconnects_and_failures_are_counted(fleet: Any) -> None:
    """Reconnections and failures count as events, not as attempts."""
    with fleet.worker(0, 1) as client:
        store = client.store()
        store.push_pull("w", np.ones(5, np.float32))
        fleet.cut()
        wait_until(lambda: client.statistics().reconnects)
        store.push_pull("w", np.ones(5, np.float32))
        assert client.statistics().reconnects == 1
        assert fleet.servers[0]._service.registry.counters.items()[0][1].reconnects == 1
        with fleet.worker(0, 2, job="other") as one, fleet.worker(1, 2, job="other") as two:
            results = [c.store().push_pull_async("w", np.ones(n, np.float32)) for c, n in ((one, 3), (two, 4))]
            for result in results:
                with pytest.raises(psum.DisagreementError):
                    result.result(PATIENCE_SECONDS)
            assert one.statistics().faults == two.statistics().faults == {"disagreement": 1}


def test_a_job_of_one_counts_without_aggregators() -> None:
    """A job of one worker without aggregators counts its operations too."""
    with psum.connect(psum.Settings()) as client:
        client.store().push_pull("w", np.ones(5, np.float32))
        assert client.statistics().push_pull.total.count == 1


def test_the_metrics_are_exported_where_that_is_asked_for(fleet: Any) -> None:
    """The exported metrics are those that are declared, until the client is closed."""
    with fleet.worker(0, 1, job="exported", metrics_port="127.0.0.1:0") as client:
        client.store().push_pull("w", np.ones(5, np.float32))
        declared = {metric.name: metric for metric in METRICS}
        values = {}
        for family in text_string_to_metric_families(scraped(client)):
            metric = declared[family.name + ("_total" if family.type == "counter" else "")]
            assert (family.type, family.documentation) == (metric.kind, metric.meaning)
            for sample in family.samples:
                assert sample.labels.keys() - {"le"} == set(metric.labels)
                values[sample.name, *sample.labels.values()] = sample.value
        address = client.metrics_address
    assert values["psum_client_info", "exported", "0"] == 1
    assert values["psum_client_operation_seconds_count", "push_pull"] == 1
    assert values["psum_client_stage_seconds_count", "push_pull", "exchange"] == 1
    assert values["psum_client_sent_bytes_total", "push_pull"] == 20
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE_SECONDS)


def test_a_port_that_is_taken_does_not_stop_the_training(fleet: Any, caplog: pytest.LogCaptureFixture) -> None:
    """If the port is taken, the client warns and has no metrics."""
    with (
        caplog.at_level(logging.WARNING, "psum"),
        fleet.worker(0, 1, job="a", metrics_port="127.0.0.1:0") as first,
        fleet.worker(0, 1, job="b", metrics_port=first.metrics_address) as second,
    ):
        second.store().push_pull("w", np.ones(5, np.float32))
        assert second.metrics_address == ""
    assert "PSUM_METRICS_PORT: cannot listen on 127.0.0.1" in caplog.text


def test_what_is_missing_is_named(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a library is missing, connecting raises an error that names it, and leaves nothing behind."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(psum.ConfigurationError, match=r"needs prometheus_client.*pip install 'psum\[metrics\]'"):
        fleet.worker(0, 1, metrics_port="127.0.0.1:0")


def test_workers_of_one_node_take_ports_one_after_another() -> None:
    """The workers of a node take consecutive ports from the given one on."""
    given = psum.Settings.from_environment({"PSUM_METRICS_PORT": "9400"}).metrics_port
    assert [next_port(given, local_rank) for local_rank in (0, 3)] == ["127.0.0.1:9400", "127.0.0.1:9403"]
    everywhere = psum.Settings.from_environment({"PSUM_METRICS_PORT": "0.0.0.0:0"}).metrics_port
    assert next_port(everywhere, 3) == "0.0.0.0:0"


@pytest.mark.parametrize("text", ["no", "70000", "unix:/tmp/x"])
def test_a_port_that_is_none_is_refused(text: str) -> None:
    """An invalid port is an error of the settings."""
    with pytest.raises(psum.ConfigurationError, match="PSUM_METRICS_PORT="):
        psum.Settings.from_environment({"PSUM_METRICS_PORT": text})
