"""Aggregators' pods as processes: the same command, environment, files and probes, on ports of this machine."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import trustme

from faults.aggregators import free_port
from tests.deploy.manifests import Pod, Resource, entrypoint

#: Of the job that the tests run; it is of a length that aggregators take.
TOKEN = "a-token-that-only-the-tests-have-0123456789"


class PodProcess:
    """One aggregator's pod, as a kubelet would run it.

    Args:
        pod: The pod.
        directory: Where its files and its log are.
        secrets: What is in the secrets that it mounts: their keys and values by their names.
        environ: Variables that have other values than in the pod.

    Attributes:
        address: Where it serves.
        log: The file that its log is appended to.
    """

    def __init__(
        self, pod: Pod, directory: pathlib.Path, secrets: Mapping[str, Mapping[str, bytes]], **environ: str
    ) -> None:
        self.pod = pod
        self.log = directory / "log"
        self._ports = {port["name"]: free_port() for port in pod.container["ports"]}
        self.address = f"127.0.0.1:{self._ports['grpc']}"
        self._environ = self._mount(directory, secrets) | environ
        self._environ["PSUM_LISTEN"] = self.address
        self._environ["PSUM_DATA_PORT"] = str(self._ports["data"])
        self._environ["PSUM_HTTP"] = f"127.0.0.1:{self._ports['http']}"

    def start(self) -> None:
        """Starts it, and waits until it is ready, as its probes say."""
        container = self.pod.container
        psum, *arguments = list(container.get("command", entrypoint())) + list(container.get("args", ()))
        assert psum == "psum"
        # Nothing of this process's environment, as in a container.
        environ = {"PATH": os.environ["PATH"], **self._environ}
        if "PYTHONPATH" in os.environ:
            environ["PYTHONPATH"] = os.environ["PYTHONPATH"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "psum.cli", *arguments], env=environ, stderr=log)
        if "startupProbe" in container:
            self._await("startupProbe")
        self._await("readinessProbe", seconds=60)
        assert self.probe("livenessProbe") == 200

    def probe(self, kind: str) -> int:
        """The status with which it answers a probe; 0 where it does not answer in time."""
        probe = self.pod.container[kind]
        return self.get(probe["httpGet"]["port"], probe["httpGet"]["path"], probe.get("timeoutSeconds", 1))

    def get(self, port: str, path: str, timeout: float = 5) -> int:
        """The status with which it answers at a path of one of its ports; 0 where it does not answer in time."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._ports[port]}{path}", timeout=timeout) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def terminate(self) -> None:
        """Asks it to end, as Kubernetes does."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Waits for its end for as long as Kubernetes does before it kills; returns the status."""
        return self.process.wait(self.pod.spec.get("terminationGracePeriodSeconds", 30))

    def close(self) -> None:
        """Kills it where it runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _await(self, kind: str, seconds: float | None = None) -> None:
        probe = self.pod.container[kind]
        deadline = time.monotonic() + (seconds or probe["periodSeconds"] * probe["failureThreshold"])
        while self.probe(kind) != 200:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{kind}: {self.log.read_text()}"
            time.sleep(0.05)

    def _mount(self, directory: pathlib.Path, secrets: Mapping[str, Mapping[str, bytes]]) -> dict[str, str]:
        """Writes the files of its volumes, and returns its environment with their paths in place of the mounts'."""
        environ = self.pod.environ
        volumes = {volume["name"]: volume for volume in self.pod.spec.get("volumes", ())}
        for mount in self.pod.container.get("volumeMounts", ()):
            volume = volumes[mount["name"]]
            if "secret" not in volume:
                continue
            folder = directory / mount["name"]
            folder.mkdir(parents=True)
            for key, value in secrets[volume["secret"]["secretName"]].items():
                (folder / key).write_bytes(value)
            environ = {k: re.sub(f"^{re.escape(mount['mountPath'])}/", f"{folder}/", v) for k, v in environ.items()}
        return environ


def secrets(resources: "tuple[Resource, ...]", *names: str) -> dict[str, dict[str, bytes]]:
    """The secrets that an overlay's pods mount: a certificate as cert-manager would make it, and tokens.

    Args:
        resources: The overlay's.
        names: More names that the certificate is for.
    """
    found: dict[str, dict[str, bytes]] = {"psum-tokens": {"tokens": f"{TOKEN}\n".encode()}}
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    for certificate in (r["spec"] for r in resources if r["kind"] == "Certificate" and "dnsNames" in r["spec"]):
        made = authority.issue_cert(*certificate["dnsNames"], *names, key_type=trustme.KeyType.ECDSA)
        found[certificate["secretName"]] = {
            "ca.crt": authority.cert_pem.bytes(),
            "tls.crt": b"".join(blob.bytes() for blob in made.cert_chain_pems),
            "tls.key": made.private_key_pem.bytes(),
        }
    return found


def worker_settings(secret: Mapping[str, Mapping[str, bytes]], directory: pathlib.Path) -> dict[str, Any]:
    """Settings of a worker that fit the aggregators: its files, written to a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {}
    if "psum-aggregator-tls" in secret:
        (directory / "ca.crt").write_bytes(secret["psum-aggregator-tls"]["ca.crt"])
        (directory / "token").write_text(TOKEN)
        settings = {"tls_ca": str(directory / "ca.crt"), "token_file": str(directory / "token")}
    return settings


@contextlib.contextmanager
def running(*processes: PodProcess) -> Iterator[None]:
    """Starts pods; at the end none is left."""
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.callback(process.close)
            process.start()
        yield
