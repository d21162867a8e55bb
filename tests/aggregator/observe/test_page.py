"""The status page in a real browser, with a job whose worker is stalled."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import numpy as np
import pytest

from psum import client as psum

#: How long anything in these tests may take.
PATIENCE_SECONDS = 40.0

#: A directory for pictures of the page, for people to look at, if it is set.
PICTURES = os.environ.get("TEST_PSUM_PICTURES")

NASTY = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.skipif(_CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
    pytest.mark.timeout(120),
    # It tests the page, which does not depend on the version of Python.
    pytest.mark.once,
]


class Page:
    """A page in a browser, controlled by the browser's debugging protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.log: list[str] = []
        """The browser's messages about the page: errors, warnings and violations of its policy."""

    async def call(self, method: str, **parameters: Any) -> Any:
        """Calls a method of the browser, and returns its answer."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                answer = await self._socket.receive_json()
                if answer.get("method") == "Log.entryAdded":
                    self.log.append(answer["params"]["entry"]["text"])
                if answer.get("method") == "Runtime.exceptionThrown":
                    self.log.append(json.dumps(answer["params"]))
                if answer.get("id") == number:
                    assert "error" not in answer, answer
                    return answer["result"]

    async def value(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    async def text_with(self, *parts: str) -> str:
        """The text of the page, as soon as it contains all of these parts."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            text = str(await self.value("document.body.innerText"))
            if all(part in text for part in parts):
                return text
            assert time.monotonic() < deadline, f"{parts} not in: {text}"
            await asyncio.sleep(0.1)

    async def until(self, condition: str) -> None:
        """Waits until an expression is true in the page."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            if await self.value(condition) is True:
                return
            assert time.monotonic() < deadline, condition
            await asyncio.sleep(0.1)

    async def picture(self, name: str, width: int, height: int) -> None:
        """Sets the size of the page, and takes a picture of it."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        await asyncio.sleep(0.3)
        answer = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        if PICTURES:
            (pathlib.Path(PICTURES) / f"{name}.png").write_bytes(base64.b64decode(answer["data"]))


@pytest.fixture
async def page(tmp_path: pathlib.Path) -> AsyncIterator[Page]:
    """An empty page in a browser of its own."""
    profile = tmp_path / "profile"
    command = [str(_CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={profile}", "--no-first-run", "--remote-debugging-port=0", "about:blank"]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = profile / "DevToolsActivePort"
        async with asyncio.timeout(PATIENCE_SECONDS), aiohttp.ClientSession() as session:
            while True:
                if port.exists() and len(lines := port.read_text().splitlines()) == 2:
                    break
                await asyncio.sleep(0.05)
            while True:
                async with session.get(f"http://127.0.0.1:{lines[0]}/json/list") as response:
                    targets = [target for target in await response.json() if target["type"] == "page"]
                if targets:
                    break
                await asyncio.sleep(0.05)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(targets[0]["webSocketDebuggerUrl"], max_msg_size=0) as connection,
        ):
            opened = Page(connection)
            for domain in ("Log", "Page", "Runtime"):
                await opened.call(f"{domain}.enable")
            yield opened
    finally:
        process.terminate()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await process.wait()


class Aggregator:
    """An aggregator process that can be killed and started again at the same addresses."""

    def __init__(self, directory: pathlib.Path) -> None:
        with contextlib.ExitStack() as stack:
            probes = [stack.enter_context(socket.socket()) for _ in range(2)]
            for probe in probes:
                probe.bind(("127.0.0.1", 0))
            self.address, self.http = (f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes)
        self._log = (directory / "aggregator.log").open("ab")
        self.start()

    def start(self) -> None:
        """Starts it, and waits until it serves."""
        command = [sys.executable, "-m", "psum.cli", "aggregator", "--listen", self.address, "--http", self.http]
        self._process = subprocess.Popen(command, stderr=self._log)
        psum.fetch_status(self.address, timeout=PATIENCE_SECONDS)

    def kill(self) -> None:
        """Kills it."""
        self._process.kill()
        self._process.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        """Ends it."""
        self.kill()
        self._log.close()


@pytest.fixture
def aggregator(tmp_path: pathlib.Path) -> Iterator[Aggregator]:
    """An aggregator in a process of its own."""
    aggregator = Aggregator(tmp_path)
    yield aggregator
    aggregator.close()


@pytest.fixture
def stalled(aggregator: Aggregator) -> Iterator[Aggregator]:
    """The same with a job that waits for rank 1, and another one that goes on."""
    with contextlib.ExitStack() as stack:
        fast, slow = (
            stack.enter_context(
                psum.connect(psum.Settings(aggregators=(aggregator.address,), rank=rank, num_workers=2, job=NASTY))
            )
            for rank in range(2)
        )
        stores = fast.store(), slow.store()
        for future in [store.push_pull_async("dense/weight", np.ones(500_000, np.float32)) for store in stores]:
            future.result(PATIENCE_SECONDS)
        # More rounds than are listed at first; the oldest one is named.
        keys = NASTY, *range(19)
        waiting = [stores[0].push_pull_async(key, np.ones(1000, np.float32)) for key in keys]
        other = stack.enter_context(psum.connect(psum.Settings(aggregators=(aggregator.address,), job="resnet-50")))
        other.store().push_pull("conv0/weight", np.ones(100_000, np.float32))
        yield aggregator
        waiting += [stores[1].push_pull_async(key, np.ones(1000, np.float32)) for key in keys]
        for future in waiting:
            future.result(PATIENCE_SECONDS)


async def test_the_page_names_the_rank_and_survives_a_restart(stalled: Aggregator, page: Page) -> None:
    """Names of workers never become markup, and the page needs no reload after a restart."""
    await page.call("Page.navigate", url=f"http://{stalled.http}/")
    text = await page.text_with("for rank 1", "serving", NASTY, "resnet-50")
    assert f"Round 0 of {NASTY}, shard 0, has waited" in text
    assert "2 of 2 workers" in text
    assert "the oldest 12 of 20" in text
    # The alert comes first, where a phone shows it without scrolling, and links to the job.
    assert "for rank 1." in str(await page.value("document.getElementById('attention').innerText"))
    await page.value("document.querySelector('#attention a').click()")
    assert await page.value("document.querySelector('.job').open")
    assert str(await page.value("document.title")).startswith("psum 127.0.0.1:")
    assert await page.value("document.querySelectorAll('img, body script').length") == 0
    await page.value("document.getElementById('settings-section').open = true")
    await page.text_with("PSUM_WORKER_TIMEOUT", "30 s", "PSUM_MEMORY_BUDGET", "no limit")
    for curve in ("received", "sent"):
        assert await page.value(f"document.querySelectorAll('#throughput polyline.{curve}').length") == 1

    for name, width, height in (("desktop", 1280, 900), ("phone", 390, 844)):
        await page.picture(name, width, height)
        # No horizontal scrolling is needed.
        assert await page.value("document.documentElement.scrollWidth") <= width
    await page.value("document.querySelector('.job button').click()")
    await page.until("document.querySelectorAll('.job')[0].querySelectorAll('tbody')[1].rows.length === 20")
    # Of a hundred workers, those that vanished or are waited for are listed at first.
    many = """Array.from({length: 100}, (_, rank) => ({rank, behind_seconds: rank === 57 ? 5 : 0.5,
        state: rank === 80 ? "vanished" : "connected"}))"""
    assert await page.value(f"foremost({many}).map((w) => w.rank).join()") == ",".join(map(str, [*range(18), 57, 80]))
    assert "the oldest" not in str(await page.value("document.body.innerText"))
    # A key that is a number is shown with its label.
    assert (
        await page.value(
            "waits({rounds: [{key: '0', label: 'dense0_weight', round: 3, shard: 1, waiting_seconds: 2,"
            " waiting_for: [1]}]})[0].innerText"
        )
        == "Round 3 of 0 (dense0_weight), shard 1, has waited 2.0 s for rank 1."
    )
    # A relay shows its group and the aggregators that it forwards to.
    worker = {"rank": 4, "ranks": [4], "state": "connected", "behind_seconds": 0, "last_heard_seconds": 0}
    worker |= {"received_bytes": 0, "sent_bytes": 0, "way": "shm", "address": "", "worker": "node pid 4"}
    far = {"address": "b:1", "state": "not connected", "way": "", "sent_bytes": 1024, "received_bytes": 0}
    forwarded = {"key": "w", "label": "", "shard": 0, "round": 5, "waiting_seconds": 9, "waiting_for": []}
    host = {"name": "host", "workers": [worker], "num_workers": 2, "not_joined": [], "rounds_waiting": 1}
    host |= {"rounds": [forwarded], "uplinks": [{**far, "outstanding_shards": 7}]}
    text = await page.value(f"jobBody({json.dumps(host)}).textContent")
    assert "Forwards to" in text
    assert "b:1not connected1.0\u00a0KiB0\u00a0B7" in text
    assert "w059.0 san aggregator" in text
    assert "has waited" not in text.replace("has waitedfor", ""), "no rank is waited for"
    # An elastic job shows its members and how they have changed.
    lost = {"change": "lost", "rank": 1, "generation": 0, "text": "node pid 4 vanished", "seconds_ago": 9}
    elastic: dict[str, Any] = {
        "min": 2,
        "max": 4,
        "members": 1,
        "losses": 1,
        "joins": 0,
        "departures": 2,
        "changed_seconds": 9,
    }
    elastic |= {
        "lost": [1],
        "events": [lost],
        "candidates": [{"rank": 1, "worker": "node pid 9", "waiting_seconds": 3}],
    }
    text = await page.value(f"jobBody({json.dumps({**host, 'elastic': elastic})}).textContent")
    assert "Elastic 2:4: 1 member, 1 loss, 0 joins, 2 departures; last change 9.0 s ago" in text
    assert "Rounds wait: they need 2 members." in text
    assert "node pid 9 has waited 3.0 s to join as rank 1." in text
    assert "lost19.0 snode pid 4 vanished" in text
    assert page.log == []

    await asyncio.to_thread(stalled.kill)
    await page.text_with("no answer", "trying again", "for rank 1")
    assert await page.value("document.body.classList.contains('stale')")
    await page.picture("gone", 390, 844)
    await asyncio.to_thread(stalled.start)
    await page.text_with("serving again", "for rank 1")
    assert not await page.value("document.body.classList.contains('stale')")


async def test_a_rate_is_of_the_time_between_two_refreshes(stalled: Aggregator, page: Page) -> None:
    """Refreshes in quick succession, as when the page becomes visible, give no rate rather than 0 B/s."""
    await page.call("Page.navigate", url=f"http://{stalled.http}/")
    await page.text_with("resnet-50", "serving")
    await page.value("rates.clear(); refresh(); refresh(); document.dispatchEvent(new Event('visibilitychange'))")
    await page.until("!refreshing")
    await page.value("refresh()")
    await page.until("!refreshing")
    assert "/s in" not in str(await page.value("document.querySelector('.job').innerText"))
    await page.text_with("0\u00a0B/s in, 0\u00a0B/s out")

    def look(received: int, sent: int, at: int) -> str:
        job = f"{{name: 'j', uplinks: [], received_bytes: {received}, sent_bytes: {sent}}}"
        return f"rates.set('j', rateOf({job}, {at})), rates.get('j').text"

    told = [await page.value(look(*then)) for then in ((0, 0, 0), (50, 50, 9), (2048, 4096, 2000), (2048, 4096, 2010))]
    rate = ", 1.0\u00a0KiB/s in, 2.0\u00a0KiB/s out"
    assert told == ["", "", rate, rate]
    # A new job of the same name.
    assert await page.value(look(1, 4096, 5000)) == ""
