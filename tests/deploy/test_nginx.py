"""A training whose workers reach the aggregators through nginx, as deploy/nginx sets it up."""

import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import trustme

from faults.aggregators import aggregators, free_port
from faults.training import Training, undisturbed
from psum import client as psum
from psum.client.transport.credentials import Credentials
from psum.wire import NO_PROXY
from tests.deploy.manifests import ROOT
from tests.polling import wait_until

#: How long nginx may take to start or to stop.
PATIENCE_SECONDS = 20.0

#: Debian installs nginx in a folder that only root's PATH has.
_NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

pytestmark = pytest.mark.skipif(_NGINX is None, reason="nginx is not installed (Debian: apt-get install nginx)")

MAIN = """
daemon off;
worker_processes 1;
{user}
pid {directory}/pid;
error_log stderr info;
events {{}}
http {{
    access_log {directory}/access;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {site}
}}
"""


class Nginx:
    """nginx with the site of deploy/nginx. Its ports, files and names are replaced by some of this machine.

    Args:
        directory: The folder for its files.
        target: The address of the aggregator behind it.

    Attributes:
        addresses: The addresses at which workers reach it.
        settings: The other settings that workers need.
        access: The log of all calls.
    """

    def __init__(self, directory: pathlib.Path, target: str) -> None:
        self.directory = directory
        directory.mkdir()
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost")
        authority.cert_pem.write_to_path(str(directory / "ca.pem"))
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(str(directory / "tls.crt"), append=True)
        certificate.private_key_pem.write_to_path(str(directory / "tls.key"))
        port = free_port()
        site = (ROOT / "deploy/nginx/psum.conf").read_text()
        for old, new in {
            "127.0.0.1:50051": target,
            "listen 443": f"listen 127.0.0.1:{port}",
            "/etc/psum/tls": str(directory),
            "psum-0.example.com": "localhost",
        }.items():
            assert old in site
            site = site.replace(old, new)
        user = "user root;" if os.getuid() == 0 else ""
        (directory / "nginx.conf").write_text(MAIN.format(directory=directory, site=site, user=user))
        self.addresses = [f"localhost:{port}"]
        self.settings: dict[str, Any] = {"tls_ca": str(directory / "ca.pem"), "plane": "inline"}
        self.access = directory / "access"
        assert _NGINX is not None
        command = [_NGINX, "-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", "stderr"]
        with (directory / "log").open("w") as log:
            self.process = subprocess.Popen(command, stderr=log)

    @property
    def log(self) -> str:
        """Its error log."""
        return (self.directory / "log").read_text()

    def close(self) -> None:
        """Ends nginx and its worker processes."""
        self.process.terminate()
        self.process.wait(PATIENCE_SECONDS)


@pytest.fixture
def proxied(tmp_path: pathlib.Path) -> Iterator[Nginx]:
    """nginx in front of an aggregator."""
    with aggregators(tmp_path, 1) as (aggregator,):
        nginx = Nginx(tmp_path / "nginx", aggregator.address)
        try:
            yield nginx
        finally:
            nginx.close()


@pytest.mark.timeout(120)
def test_a_training_runs_through_nginx(proxied: Nginx, tmp_path: pathlib.Path) -> None:
    """Workers use TLS as far as nginx. The result is bit for bit that of a training without nginx."""
    training = Training(tmp_path / "training", proxied.addresses, **proxied.settings)
    try:
        assert training.result() == undisturbed(tmp_path / "undisturbed")
    finally:
        training.close()
    assert " [error] " not in proxied.log, proxied.log

    def logged() -> list[str]:
        return [line for line in proxied.access.read_text().splitlines() if "AggregatorService/Exchange" in line]

    # nginx writes a line when it has closed a call, after the worker.
    wait_until(lambda: len(logged()) >= len(training.workers))
    calls = logged()
    assert len(calls) == len(training.workers)
    assert all(re.search(r'HTTP/2.0" 200 ', line) for line in calls), calls
    assert not any("lost its connection" in worker.log for worker in training.workers)


def test_nothing_but_the_service_is_passed_on(proxied: Nginx) -> None:
    """nginx passes on the status, which belongs to the service, but no other service of the aggregator."""
    settings = psum.Settings(tls_ca=proxied.settings["tls_ca"])
    assert not psum.fetch_status(proxied.addresses[0], settings=settings).jobs
    with Credentials.of(settings).channel(proxied.addresses[0], (NO_PROXY,)) as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        with pytest.raises(grpc.RpcError) as caught:
            check(b"", timeout=PATIENCE_SECONDS, wait_for_ready=True)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
