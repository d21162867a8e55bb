"""Probes, metrics and the status page over HTTP, read only, served on the event loop that does the work.

An answered probe shows that this loop runs. A server in a thread of its own would answer even if the loop hangs.
"""

import asyncio
import importlib.resources
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

from aiohttp import web
from prometheus_client.metrics_core import Metric as Family

from psum.runtime import cannot_listen
from psum.runtime.prometheus import encode
from psum.wire import is_local
from psum.wire.errors import ConfigurationError

_log = logging.getLogger(__name__)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: The page's scripts and styles are separate files, so that no inline code is allowed: names of jobs and keys cannot
#: inject any.
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "psum",
}

_FILES: Final = {
    "/": ("status.html", "text/html"),
    "/status.js": ("status.js", "text/javascript"),
    "/status.css": ("status.css", "text/css"),
    "/status.svg": ("status.svg", "image/svg+xml"),
}

#: For how long one report is reused: many viewers of the page cost no more than one.
_REPORT_SECONDS: Final = 1.0

_CLOSING_SECONDS: Final = 1.0


class View(Protocol):
    """What operators see of an aggregator. Each answer comes from the event loops that do the work."""

    async def hanging(self) -> str | None:
        """What does not answer, None if everything does."""

    async def unready(self) -> str | None:
        """Why no worker can connect, None if workers can."""

    async def families(self) -> Sequence[Family]:
        """All metrics with their present values."""

    async def report(self) -> dict[str, Any]:
        """The data of the status page."""


class Http:
    """The HTTP server of one aggregator.

    Args:
        view: What it shows.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._loop = asyncio.get_running_loop()
        self._report = b""
        self._reported_at = -_REPORT_SECONDS
        self._reporting = asyncio.Lock()
        self._local = True
        app = web.Application(middlewares=[self._guard])
        app.on_response_prepare.append(_add_headers)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/api/status", self._status)
        page = importlib.resources.files("psum.aggregator.observe").joinpath("page")
        for path, (name, content_type) in _FILES.items():
            app.router.add_get(path, _file(page.joinpath(name).read_bytes(), content_type))
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_CLOSING_SECONDS)

    async def start(self, address: str) -> str:
        """Starts to listen at host:port. Returns the address with the port that was bound.

        Raises:
            ConfigurationError: The address cannot be listened on.
        """
        host, _, port = address.rpartition(":")
        self._local = is_local(address)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host.strip("[]"), int(port)).start()
        except OSError as error:
            await self.close()
            raise ConfigurationError([cannot_listen("http", "HTTP", address, error)]) from None
        return f"{host}:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        """Stops listening."""
        await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        # DNS rebinding: a foreign page in a browser on this machine may make its own name resolve to this address.
        if self._local and not _is_of_this_machine(request.host):
            raise web.HTTPMisdirectedRequest(text="served to this machine only, by IP address or as localhost\n")
        return await handler(request)

    async def _healthz(self, _request: web.Request) -> web.Response:
        if (what := await self._view.hanging()) is not None:
            return web.Response(status=503, text=f"{what}\n")
        return web.Response(text="alive\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        if (why := await self._view.unready()) is not None:
            return web.Response(status=503, text=f"{why}\n")
        return web.Response(text="ready\n")

    async def _metrics(self, request: web.Request) -> web.Response:
        families = await self._view.families()
        # Encoding is most of the work, and need not block the loop.
        body, content_type = await asyncio.to_thread(encode, families, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _status(self, _request: web.Request) -> web.Response:
        async with self._reporting:
            if self._loop.time() - self._reported_at >= _REPORT_SECONDS:
                found = await self._view.report()
                self._report = await asyncio.to_thread(lambda: json.dumps(found).encode())
                self._reported_at = self._loop.time()
        return web.Response(body=self._report, content_type="application/json")


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


def _file(content: bytes, content_type: str) -> _Handler:
    async def serve(_request: web.Request) -> web.Response:
        return web.Response(body=content, content_type=content_type, charset="utf-8")

    return serve


def _is_of_this_machine(host: str) -> bool:
    """Whether a Host header is an address or localhost, which cannot be the name of a foreign site."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name.lower() == "localhost"
    return True
