"""Probes, metrics and the status page over HTTP: to be read only, on the event loop that does the work.

A probe that is answered shows that this loop turns; a server in a thread of its own would say so of a loop that hangs.
"""

import asyncio
import importlib.resources
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from psum.aggregator.observe.metrics import collect
from psum.aggregator.observe.report import report
from psum.aggregator.service.service import Service
from psum.runtime import cannot_listen
from psum.runtime.prometheus import encode
from psum.wire import is_local
from psum.wire.errors import ConfigurationError

_log = logging.getLogger(__name__)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: The page's scripts and styles are files of their own, so that nothing within it is ever run, whatever names say.
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

#: For how long one report is good: many who look at a page cost no more than one.
_REPORT_SECONDS: Final = 1.0

_CLOSING_SECONDS: Final = 1.0


class Http:
    """The HTTP server of one aggregator.

    Args:
        service: What it tells of.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
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
        """Begins to listen at host:port, and returns the address with the port that was really bound.

        Raises:
            ConfigurationError: It cannot listen there.
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
        """Listens no more."""
        await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        # A page from elsewhere in a browser on this machine may have its own name point here, and read what is here.
        if self._local and not _is_of_this_machine(request.host):
            raise web.HTTPMisdirectedRequest(text="this is served to this machine only, by address or as localhost\n")
        return await handler(request)

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        if self._service.ready:
            return web.Response(text="ready\n")
        why = "draining" if self._service.draining else "starting"
        if self._service.full:
            why = self._service.descriptors.lack("no further worker can come")
        return web.Response(status=503, text=f"{why}\n")

    async def _metrics(self, request: web.Request) -> web.Response:
        families = list(collect(self._service, self._loop.time()))
        # Most of the work is to write it down, which need not hold up the loop.
        body, content_type = await asyncio.to_thread(encode, families, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _status(self, _request: web.Request) -> web.Response:
        async with self._reporting:
            if self._loop.time() - self._reported_at >= _REPORT_SECONDS:
                status, throughput = self._service.status(), self._service.pulse.throughput
                self._report = await asyncio.to_thread(
                    lambda: json.dumps(report(status, self._service.settings, throughput)).encode()
                )
                self._reported_at = self._loop.time()
        return web.Response(body=self._report, content_type="application/json")


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


def _file(content: bytes, content_type: str) -> _Handler:
    async def serve(_request: web.Request) -> web.Response:
        return web.Response(body=content, content_type=content_type, charset="utf-8")

    return serve


def _is_of_this_machine(host: str) -> bool:
    """Whether a Host header names an address or localhost, which no other site can be called."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name.lower() == "localhost"
    return True
