"""Prometheus itself reads the metrics, and finds nothing wrong with them."""

import json
import pathlib
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest

from psum import client as psum

#: How long anything in these tests may take.
PATIENCE_SECONDS = 40.0

pytestmark = [
    pytest.mark.skipif(
        shutil.which("prometheus") is None or shutil.which("promtool") is None,
        reason="Prometheus is not installed (Debian: apt-get install prometheus)",
    ),
    pytest.mark.once,
]


def fetch(url: str) -> bytes:
    """The content at a URL."""
    with urllib.request.urlopen(url, timeout=10) as response:
        content: bytes = response.read()
    return content


@pytest.fixture
def running_job(serve_process: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """A job that has completed rounds and waits for a rank: the URLs of its aggregator's and a worker's metrics."""
    address, probed = serve_process
    first, second = (
        psum.Settings(aggregators=(address,), job="scraped", rank=rank, num_workers=2, metrics_port="127.0.0.1:0")
        for rank in range(2)
    )
    with psum.connect(first) as one, psum.connect(second) as two:
        stores = one.store(), two.store()
        for future in [store.push_pull_async("w", np.ones(1000, np.float32)) for store in stores]:
            future.result(PATIENCE_SECONDS)
        waiting = stores[0].push_pull_async("late", np.ones(5, np.float32))
        yield probed, one.metrics_address
        stores[1].push_pull("late", np.ones(5, np.float32))
        waiting.result(PATIENCE_SECONDS)


def test_promtool_finds_nothing_to_object_to(running_job: tuple[str, str]) -> None:
    """Names, units and help texts of both sides follow the conventions."""
    for address in running_job:
        text = fetch(f"http://{address}/metrics")
        command = ["promtool", "check", "metrics"]
        done = subprocess.run(command, input=text, capture_output=True, timeout=PATIENCE_SECONDS)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.timeout(90)
def test_prometheus_scrapes_a_running_job(running_job: tuple[str, str], tmp_path: pathlib.Path) -> None:
    """Its queries tell how many workers are connected, how long a round waits and how long rounds took."""
    aggregator, worker = running_job
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        own = f"127.0.0.1:{probe.getsockname()[1]}"
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "psum", "static_configs": [{"targets": [aggregator, worker]}]}],
    }
    # JSON is YAML.
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={own}"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS

        def ask(query: str) -> float:
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    answer = json.loads(fetch(f"http://{own}/api/v1/query?query={urllib.parse.quote(query)}"))
                    return float(answer["data"]["result"][0]["value"][1])
                except (OSError, IndexError):
                    time.sleep(0.1)
            raise AssertionError(f"no answer to {query}: {(tmp_path / 'log').read_text()}")

        assert ask('sum(up{job="psum"}) == 2') == 2
        assert ask("psum_client_operations_in_progress") == 1
        assert ask('psum_workers_connected{job_name="scraped"}') == 2
        assert ask('psum_oldest_round_wait_seconds{job_name="scraped"}') > 0
        quantile = "histogram_quantile(0.5, psum_round_duration_seconds_bucket{job_name='scraped'})"
        assert 0 < ask(quantile) < PATIENCE_SECONDS
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)
