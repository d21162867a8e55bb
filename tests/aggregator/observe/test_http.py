"""The HTTP server of an aggregator, read by a real client while real workers are connected."""

import asyncio
import importlib.resources
import pathlib
import re
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import numpy as np
import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from psum import client as psum
from psum.aggregator import Server, Settings
from psum.aggregator.observe.http import _FILES
from psum.aggregator.observe.metrics import METRICS

#: How long anything in these tests may take.
PATIENCE_SECONDS = 30.0

PATHS = ("/healthz", "/readyz", "/metrics", "/api/status", *_FILES)

NASTY = "<script>alert('1')</script>\\ \"&amp;"
"""The name of a job or a key that would do something in a page that did not escape it."""

Serve = Callable[..., Awaitable[Server]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts aggregators with HTTP on the test's event loop."""
    servers = []

    async def start(**settings: Any) -> Server:
        given: dict[str, Any] = {"listen": ("127.0.0.1:0",), "http": "127.0.0.1:0"}
        server = Server(Settings(**given | settings))
        await server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.stop(0)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE_SECONDS)) as session:
        yield session


def worker(server: Server, rank: int = 0, num_workers: int = 1, **settings: Any) -> psum.Client:
    """A worker that has joined."""
    return psum.connect(psum.Settings(aggregators=server.addresses, rank=rank, num_workers=num_workers, **settings))


async def get(http: aiohttp.ClientSession, server: Server, path: str, **headers: str) -> tuple[int, str]:
    """The status and the text of an answer."""
    async with http.get(f"http://{server.http_address}{path}", headers=headers) as response:
        return response.status, await response.text()


async def status_when(
    http: aiohttp.ClientSession, server: Server, condition: Callable[[Any], object]
) -> dict[str, Any]:
    """The first report that fulfils a condition."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            async with http.get(f"http://{server.http_address}/api/status") as response:
                report: dict[str, Any] = await response.json()
            if condition(report):
                return report
            await asyncio.sleep(0.05)


def parse(text: str) -> list[Family]:
    """The samples in Prometheus' text format."""
    return list(text_string_to_metric_families(text))


async def samples(http: aiohttp.ClientSession, server: Server) -> dict[tuple[str, ...], float]:
    """All metrics by their name and the values of their labels."""
    _, text = await get(http, server, "/metrics")
    return {(sample.name, *sample.labels.values()): sample.value for family in parse(text) for sample in family.samples}


async def test_the_report_says_whom_a_round_waits_for(serve: Serve, http: aiohttp.ClientSession) -> None:
    """It also says for how long each worker has been behind, and repeats any name that workers give."""
    server = await serve(memory_budget=3 << 30)

    def job() -> tuple[psum.Client, psum.Client, Any]:
        fast, slow = (worker(server, rank, 2, job=NASTY) for rank in range(2))
        return fast, slow, fast.store().push_pull_async(NASTY, np.ones(7, np.float32))

    fast, slow, result = await asyncio.to_thread(job)
    report = await status_when(http, server, lambda r: r["jobs"] and r["jobs"][0]["rounds"])
    (told,) = report["jobs"]
    assert (told["name"], told["num_workers"], told["keys"], told["received_bytes"]) == (NASTY, 2, 1, 28)
    (waiting,) = told["rounds"]
    assert (waiting["key"], waiting["round"], waiting["waiting_for"]) == (NASTY, 0, [1])
    assert [(w["rank"], w["state"]) for w in told["workers"]] == [(0, "connected"), (1, "connected")]
    assert [w["behind_seconds"] for w in told["workers"]] == [0.0, waiting["waiting_seconds"]]
    assert report["aggregator"]["addresses"] == list(server.addresses)
    assert report["aggregator"]["settings"]["PSUM_WORKER_TIMEOUT"] == 30.0
    told = report["aggregator"]["settings_text"]
    assert (told["PSUM_WORKER_TIMEOUT"], told["PSUM_MEMORY_BUDGET"], told["PSUM_REFLECTION"]) == (
        "30 s",
        "3072 MiB",
        "off",
    )

    assert report["aggregator"]["settings_changed"] == ["PSUM_LISTEN", "PSUM_MEMORY_BUDGET", "PSUM_HTTP"]

    def end() -> None:
        slow.store().push_pull(NASTY, np.ones(7, np.float32))
        result.result(PATIENCE_SECONDS)
        fast.close()
        slow.close()

    await asyncio.to_thread(end)
    report = await status_when(http, server, lambda r: not r["jobs"])
    assert [(ended["name"], ended["joined"], ended["failure"]) for ended in report["ended"]] == [(NASTY, 2, "")]


async def test_the_metrics_of_a_small_job_are_exact(serve: Serve, http: aiohttp.ClientSession) -> None:
    """Each contribution, each byte and each round is counted once, under its job and its operation."""
    server = await serve()

    def train(rank: int) -> psum.Client:
        client = worker(server, rank, 2, job=NASTY, plane="inline")
        store = client.store()
        for _ in range(3):
            store.push_pull("w", np.ones(100_000, np.float32))
        store.broadcast("b", np.ones(5, np.float64))
        return client

    clients = await asyncio.gather(*(asyncio.to_thread(train, rank) for rank in range(2)))
    found = await samples(http, server)
    expected = {
        ("psum_jobs",): 1,
        ("psum_ready",): 1,
        ("psum_workers", NASTY): 2,
        ("psum_workers_connected", NASTY): 2,
        ("psum_rounds_waiting", NASTY): 0,
        ("psum_oldest_round_wait_seconds", NASTY): 0,
        ("psum_memory_reserved_bytes",): 3 * 440_000 - 3 * 40_000 + 3 * 40,
        ("psum_held_bytes", NASTY): 400_040,
        ("psum_contributions_total", NASTY, "sum"): 6,
        ("psum_contributions_total", NASTY, "broadcast"): 2,
        ("psum_received_bytes_total", NASTY, "sum"): 6 * 400_000,
        ("psum_sent_bytes_total", NASTY, "sum"): 6 * 400_000,
        ("psum_received_bytes_total", NASTY, "broadcast"): 40,
        ("psum_sent_bytes_total", NASTY, "broadcast"): 40,
        ("psum_round_duration_seconds_count", NASTY, "sum"): 3,
        ("psum_round_wait_seconds_count", NASTY, "sum"): 3,
        ("psum_sum_seconds_count", NASTY, "sum"): 3,
        ("psum_duplicate_contributions_total", NASTY): 0,
        ("psum_reconnects_total", NASTY): 0,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found["psum_round_wait_seconds_sum", NASTY, "sum"] <= found["psum_round_duration_seconds_sum", NASTY, "sum"]
    for client in clients:
        await asyncio.to_thread(client.close)
    found = await samples(http, server)
    # Counters of an ended job can still be scraped; its gauges are gone.
    assert found["psum_contributions_total", NASTY, "sum"] == 6
    assert ("psum_workers", NASTY) not in found


async def test_what_is_exported_is_what_is_documented(serve: Serve, http: aiohttp.ClientSession) -> None:
    """Every exported metric of psum is declared, with the same labels."""
    server = await serve()
    client = await asyncio.to_thread(worker, server)
    await asyncio.to_thread(client.store().push_pull, "w", np.ones(5, np.float32))
    _, text = await get(http, server, "/metrics")
    await asyncio.to_thread(client.close)
    declared = {metric.name: metric for metric in METRICS}
    for family in parse(text):
        if family.name.startswith("process_"):
            continue
        metric = declared[family.name + ("_total" if family.type == "counter" else "")]
        assert (family.type, family.documentation) == (metric.kind, metric.meaning)
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == set(metric.labels)


async def test_the_accept_header_chooses_the_format(serve: Serve, http: aiohttp.ClientSession) -> None:
    """OpenMetrics for clients that ask for it, as Prometheus does, otherwise Prometheus' text format."""
    server = await serve()
    url = f"http://{server.http_address}/metrics"
    async with http.get(url) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        assert parse(await response.text())
    async with http.get(url, headers={"Accept": "application/openmetrics-text;version=1.0.0,*/*;q=0.1"}) as response:
        assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        text = await response.text()
    assert text.endswith("# EOF\n")
    assert "psum_jobs" in {family.name for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]


async def test_a_refused_worker_is_counted_by_the_reason(
    serve: Serve, http: aiohttp.ClientSession, tmp_path: pathlib.Path
) -> None:
    """It counts for no job, because the worker only claimed the name."""
    (tmp_path / "tokens").write_text("0123456789abcdef0123\n")
    server = await serve(token_file=str(tmp_path / "tokens"))
    with pytest.raises(psum.DeniedError):
        await asyncio.to_thread(worker, server, job="claimed")
    found = await samples(http, server)
    # It may try again before the answer reaches it.
    assert found["psum_refused_workers_total", "denied"] >= 1
    assert not [name for name in found if "claimed" in name]


async def test_a_failure_is_counted_by_its_kind(serve: Serve, http: aiohttp.ClientSession) -> None:
    """The count has the job as a label."""
    server = await serve()
    client = await asyncio.to_thread(worker, server, job="faulty")

    def fail() -> None:
        ticket = client.store().reserve("w", shape=(5,), element_type=psum.ElementType.FLOAT32)
        ticket.abort("no data")

    await asyncio.to_thread(fail)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if (await samples(http, server)).get(("psum_faults_total", "faulty", "aborted")) == 1:
                break
            await asyncio.sleep(0.02)
    await asyncio.to_thread(client.close)


@pytest.mark.parametrize("path", PATHS)
async def test_nothing_can_be_changed(serve: Serve, http: aiohttp.ClientSession, path: str) -> None:
    """Every path is read only, and its headers let a browser run and embed nothing from elsewhere."""
    server = await serve()
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        async with http.request(method, f"http://{server.http_address}{path}", data=b"x") as response:
            assert response.status == 405
    async with http.get(f"http://{server.http_address}{path}") as response:
        assert response.status == 200
        policy = response.headers["Content-Security-Policy"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Server"] == "psum"
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


async def test_an_unknown_path_has_the_same_headers(serve: Serve, http: aiohttp.ClientSession) -> None:
    """Error pages have the same headers."""
    server = await serve()
    async with http.get(f"http://{server.http_address}/../../etc/passwd%00<script>") as response:
        assert response.status == 404
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert "<script>" not in await response.text()


def test_the_page_puts_in_names_as_text_only() -> None:
    """Its code never turns a string into markup or code, has nothing inline, and loads nothing from elsewhere."""
    page = importlib.resources.files("psum.aggregator.observe").joinpath("page")
    script, html, css = (page.joinpath(name).read_text() for name in ("status.js", "status.html", "status.css"))
    ways = r"(inner|outer)HTML|insertAdjacent|document\.write|\beval\b|Function\(|DOMParser|ContextualFragment"
    assert re.findall(ways, script) == []
    assert re.findall(r"<script>|<style|\son\w+=|\sstyle=|javascript:", html) == []
    assert re.findall(r"https?://", html + css + script.replace("http://www.w3.org/2000/svg", "")) == []


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8080", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("[::1]", 200),
        ("psum.example:80", 421),
        ("localhost.psum.example", 421),
        ("", 421),
    ],
)
async def test_on_loopback_no_other_name_is_answered(
    serve: Serve, http: aiohttp.ClientSession, host: str, status: int
) -> None:
    """A foreign page cannot read it by pointing its own name at this machine."""
    server = await serve()
    answered, text = await get(http, server, "/api/status", Host=host)
    assert answered == status
    assert (status == 200) is ("incarnation" in text)


async def test_in_a_cluster_it_answers_to_any_name(serve: Serve, http: aiohttp.ClientSession) -> None:
    """It listens on other addresses than loopback only if that is set."""
    server = await serve(http="0.0.0.0:0")
    port = server.http_address.rpartition(":")[2]
    async with http.get(f"http://127.0.0.1:{port}/readyz", headers={"Host": "psum-0.psum"}) as response:
        assert response.status == 200


async def test_without_the_setting_nothing_listens() -> None:
    """HTTP is off by default."""
    server = Server(Settings(listen=("127.0.0.1:0",)))
    await server.start()
    assert server.http_address == ""
    await server.stop(0)


async def test_a_port_that_is_taken_is_refused(serve: Serve) -> None:
    """What had been started is stopped, so that the process can report the reason."""
    server = await serve()
    second = Server(Settings(listen=("127.0.0.1:0",), http=server.http_address))
    with pytest.raises(psum.ConfigurationError, match=rf"http: cannot listen on {server.http_address} for HTTP"):
        await second.start()


def test_a_port_alone_is_one_of_this_machine() -> None:
    """Other machines reach it only if that is set."""
    assert Settings.from_environment({"PSUM_HTTP": "8080"}).http == "127.0.0.1:8080"


@pytest.mark.parametrize("text", ["unix:/tmp/psum", "host", "99999", "host:99999"])
def test_an_address_that_cannot_be_used_is_refused(text: str) -> None:
    """It is refused before anything is started."""
    with pytest.raises(psum.ConfigurationError, match="PSUM_HTTP="):
        Settings.from_environment({"PSUM_HTTP": text})


async def test_a_loop_that_hangs_is_not_alive(serve: Serve) -> None:
    """Its probe is not answered, because the event loop itself would have to answer."""
    server = await serve()

    def probe(timeout: float = PATIENCE_SECONDS) -> int:
        with urllib.request.urlopen(f"http://{server.http_address}/healthz", timeout=timeout) as response:
            return int(response.status)

    assert await asyncio.to_thread(probe) == 200
    with ThreadPoolExecutor(1) as pool, pytest.raises(TimeoutError):
        # The event loop itself waits, and does nothing else.
        pool.submit(probe, 0.2).result(PATIENCE_SECONDS)
    assert await asyncio.to_thread(probe) == 200


async def test_while_it_drains_it_is_alive_but_not_ready(serve: Serve, http: aiohttp.ClientSession) -> None:
    """So Kubernetes sends no workers, and does not kill it."""
    server = await serve()
    assert await get(http, server, "/readyz") == (200, "ready\n")
    fast, slow = await asyncio.gather(*(asyncio.to_thread(worker, server, rank, 2) for rank in range(2)))
    result = fast.store().push_pull_async("w", np.ones(5, np.float32))
    await status_when(http, server, lambda r: r["jobs"][0]["rounds"])
    stopping = asyncio.create_task(server.stop(PATIENCE_SECONDS))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if await get(http, server, "/readyz") == (503, "draining\n"):
                break
            await asyncio.sleep(0.01)
    assert await get(http, server, "/healthz") == (200, "alive\n")
    slow.store().push_pull_async("w", np.ones(5, np.float32))
    await asyncio.to_thread(result.result, PATIENCE_SECONDS)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await stopping
    with pytest.raises(aiohttp.ClientConnectionError):
        await get(http, server, "/healthz")
    for client in (fast, slow):
        client.fail(psum.ClosedError("the test is over"))
        await asyncio.to_thread(client.close, 0.1)


async def test_the_throughput_of_the_last_minutes_is_told(
    serve: Serve, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report has received and sent bytes per second."""
    monkeypatch.setattr("psum.aggregator.observe.throughput.SAMPLE_SECONDS", 0.2)
    begin = time.monotonic()
    server = await serve()
    client = await asyncio.to_thread(worker, server)
    await asyncio.to_thread(client.store().push_pull, "w", np.ones(1_000_000, np.float32))
    names = ("received_bytes_per_second", "sent_bytes_per_second")
    # When one sample is zero, the earlier samples have all bytes.
    report = await status_when(
        http, server, lambda r: all(any(r["throughput"][n]) and not r["throughput"][n][-1] for n in names)
    )
    took = time.monotonic() - begin
    for rates in (report["throughput"][name] for name in names):
        assert 4_000_000 / took <= sum(rates) <= 4_000_000 / 0.2
    await asyncio.to_thread(client.close)


async def test_a_probe_is_answered_within_a_second_at_full_load(
    serve_process: Any, http: aiohttp.ClientSession
) -> None:
    """Workers keep all summing threads busy meanwhile."""
    address, probed = serve_process
    over = threading.Event()
    rounds = [0, 0]

    def train(rank: int) -> None:
        settings = psum.Settings(aggregators=(address,), rank=rank, num_workers=2, connect_timeout=PATIENCE_SECONDS)
        with psum.connect(settings) as client:
            store = client.store()
            values = [np.ones(4_000_000, np.float16) for _ in range(4)]
            going = np.ones(1, np.float32)
            while True:
                for future in [store.push_pull_async(f"w{i}", value) for i, value in enumerate(values)]:
                    future.result(PATIENCE_SECONDS)
                rounds[rank] += 1
                # Both ranks end after the same round.
                going[0] = not over.is_set()
                store.push_pull("going", going)
                if going[0] < 2:
                    return

    work = [asyncio.create_task(asyncio.to_thread(train, rank)) for rank in range(2)]
    took: list[float] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (min(rounds) < 20 or len(took) < 30) and time.monotonic() < deadline:
        for path in ("/healthz", "/readyz", "/metrics", "/api/status"):
            begin = time.monotonic()
            async with http.get(f"http://{probed}{path}") as response:
                assert response.status == 200
            took.append(time.monotonic() - begin)
    over.set()
    await asyncio.gather(*work)
    assert min(rounds) >= 20
    assert max(took) < 1.0
