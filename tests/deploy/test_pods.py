"""Aggregators' pods run as processes with their commands, environments, files and probes."""

import contextlib
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from faults.training import STEPS, Training, undisturbed
from psum import client as psum
from psum.client import Settings as WorkerSettings
from tests.deploy import containers
from tests.deploy.checks import CLOSING_SECONDS
from tests.deploy.manifests import pods, rendered
from tests.deploy.processes import Cluster, PodProcess, pod_files, running, secrets, worker_settings

pytestmark = pytest.mark.skipif(containers.lack() != "", reason=containers.lack())

#: How long anything in these tests may take.
PATIENCE_SECONDS = 40.0


@pytest.fixture
def directory() -> Iterator[pathlib.Path]:
    """A folder for the pods' files."""
    with pod_files() as made:
        yield made


@pytest.mark.parametrize("name", ["single-node", "production", "production, large", "workers/jobset"])
def test_a_pod_is_ready_drains_and_ends(name: str, directory: pathlib.Path) -> None:
    """After SIGTERM the pod is alive but not ready. It finishes the open round, and then ends at once with status 0."""
    pod = next(pod for pod in pods(rendered(name)) if pod.is_aggregator)
    files = secrets(rendered(name))
    process = PodProcess(pod, Cluster(directory, files))
    with running(process):
        settings = worker_settings(pod, files, directory / "worker")
        settings |= {"aggregators": (process.address,), "num_workers": 2}
        zero, one = (psum.connect(psum.Settings(rank=rank, **settings)) for rank in range(2))
        future = zero.store().push_pull_async("w", np.ones(100_000, np.float32))
        wait_for_open_round(process.address, settings)
        process.terminate()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while process.probe("readinessProbe") != 503:
            assert time.monotonic() < deadline
        assert process.probe("livenessProbe") == 200
        assert process.status is None
        one.store().push_pull("w", np.ones(100_000, np.float32))
        future.result(PATIENCE_SECONDS)
        assert process.wait() == 0
        assert "ERROR" not in process.log.read_text()
        # Without the short timeout, the workers would wait for the next aggregator process, which never comes.
        for client in (zero, one):
            client.close(timeout=0.1)


def wait_for_open_round(address: str, settings: dict[str, Any]) -> None:
    """Waits until the aggregator has an open round."""
    files = psum.Settings(**{k: v for k, v in settings.items() if k in ("tls_ca", "token_file", "tls_server_name")})
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not any(job.rounds for job in psum.fetch_status(address, settings=files).jobs):
        assert time.monotonic() < deadline


def test_a_pod_is_gone_within_its_grace_period(directory: pathlib.Path) -> None:
    """If a round is never finished, the pod ends within CLOSING_SECONDS after PSUM_GRACE. The test uses a short one."""
    pod = next(pods(rendered("single-node")))
    process = PodProcess(pod, Cluster(directory, {}), PSUM_GRACE="500ms")
    with running(process):
        settings: dict[str, Any] = {"aggregators": (process.address,), "num_workers": 2}
        zero, one = (psum.connect(psum.Settings(rank=rank, **settings)) for rank in range(2))
        zero.store().push_pull_async("w", np.ones(3, np.float32))
        wait_for_open_round(process.address, settings)
        before = time.monotonic()
        process.terminate()
        after = time.monotonic()
        assert process.wait() == 0
        ended = time.monotonic()
        assert ended - before >= 0.5
        assert ended - after < 0.5 + CLOSING_SECONDS
        for client in (zero, one):
            client.close(timeout=0.1)


def test_what_prometheus_is_told_to_scrape_is_served(directory: pathlib.Path) -> None:
    """The aggregator serves the path in the ServiceMonitor at the port that it names."""
    (monitor,) = (r for r in rendered("production") if r["kind"] == "ServiceMonitor")
    process = PodProcess(next(pods(rendered("production"))), Cluster(directory, secrets(rendered("production"))))
    with running(process):
        for endpoint in monitor["spec"]["endpoints"]:
            assert process.get(endpoint["port"], endpoint["path"]) == 200
        assert process.get("http", "/no-such-path") == 404


def test_the_workers_of_an_mxjob_make_a_sum(directory: pathlib.Path) -> None:
    """All workers take their settings from their controller and manifest, except addresses and files."""
    aggregator = next(pods(rendered("production")))
    files = secrets(rendered("production"))
    process = PodProcess(aggregator, Cluster(directory, files))
    with running(process), contextlib.ExitStack() as stack:
        given = worker_settings(aggregator, files, directory / "worker") | {"aggregators": (process.address,)}
        futures = []
        for pod in pods(rendered("workers/mxjob")):
            client = stack.enter_context(psum.connect(WorkerSettings.from_environment(pod.environ, **given)))
            value = np.full(3, 2.0**client.rank, np.float32)
            futures.append((value, client.store().push_pull_async("w", value)))
        assert len(futures) == 4
        for value, future in futures:
            future.result(PATIENCE_SECONDS)
            assert value.tolist() == [2.0**4 - 1] * 3


@pytest.mark.timeout(120)
def test_a_rolling_update_of_the_fleet_costs_no_step(directory: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A training with TLS and a token runs while the production overlay's three aggregators are replaced one by one,
    from the last to the first, as a StatefulSet does. Its result is bit for bit that of an undisturbed training.
    """
    resources = rendered("production")
    files = secrets(resources)
    cluster = Cluster(directory, files)
    fleet = [PodProcess(pod, cluster) for pod in pods(resources)]
    assert len(fleet) == 3
    worker = WorkerSettings.from_environment(next(pods(rendered("workers/indexed-job"))).environ)
    settings = worker_settings(fleet[0].pod, files, tmp_path / "worker")
    settings["reconnect_timeout"] = worker.reconnect_timeout
    with running(*fleet):
        training = Training(tmp_path / "training", [p.address for p in fleet], **settings)
        try:
            for process in reversed(fleet):
                training.wait_for_step(training.steps + 5)
                process.terminate()
                assert process.wait() == 0
                process.start()
            assert training.steps < STEPS, "the training was over before the last aggregator was replaced"
            assert training.result() == undisturbed(tmp_path / "undisturbed")
        finally:
            training.close()
        assert not any("ERROR" in process.log.read_text() for process in fleet)
