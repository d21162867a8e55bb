"""Pods as processes: each runs with its command, environment, files and user, at an address of this machine."""

import contextlib
import itertools
import pathlib
import random
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import trustme

from tests.deploy.containers import Container, mounts
from tests.deploy.manifests import Pod, Resource, image

#: Of the job that the tests run; it is of a length that aggregators take.
TOKEN = "a-token-that-only-the-tests-have-0123456789"

NAMESPACE = "psum"

#: How long a container that has been killed may take to be gone.
_KILLED_SECONDS = 10.0

#: What cert-manager makes of the production overlay's certificate, which whoever makes one by hand makes too.
_NAMES = ("*.psum-aggregator.psum.svc", "*.psum-aggregator.psum.svc.cluster.local")


class Cluster:
    """A namespace of a cluster: addresses, names and secrets.

    Pods have the ports that their manifests say, at loopback addresses of their own, and know each other by the names
    that the cluster's DNS has. An address changes with the pod, at once for all others, as with a DNS without a cache.

    Args:
        directory: A folder for the pods' files and logs.
        secrets: What is in the secrets that they mount: their keys and values by their names.
    """

    def __init__(self, directory: pathlib.Path, secrets: Mapping[str, Mapping[str, bytes]]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.secrets = secrets
        self.addresses: dict[str, str] = {}
        self._folders = itertools.count()
        chosen = random.SystemRandom()
        self._next = (f"127.{chosen.randrange(1, 255)}.{chosen.randrange(255)}.{n}" for n in itertools.count(1))
        self._tell()

    def join(self, pod: Pod) -> str:
        """Gives a pod an address, by which its names lead there from now on; returns it."""
        address = next(self._next)
        if pod.subdomain:
            self.addresses[f"{pod.name}.{pod.subdomain}"] = address
            self._tell()
        return address

    def folder(self) -> pathlib.Path:
        """A folder that does not exist yet, for a container's files."""
        return self.directory / f"container-{next(self._folders)}"

    def _tell(self) -> None:
        lines = ["127.0.0.1 localhost"]
        for name, address in self.addresses.items():
            lines.append(f"{address} {name} {name}.{NAMESPACE}.svc {name}.{NAMESPACE}.svc.cluster.local")
        # In place: it is mounted in containers that run.
        (self.directory / "hosts").write_text("\n".join(lines) + "\n")


class PodProcess:
    """One pod, as a kubelet would run it.

    Args:
        pod: The pod.
        cluster: Where it runs.
        program: The worker's program in place of the image's.
        arguments: More arguments of its command.
        environ: Variables that have other values than in the pod.

    Attributes:
        ip: Its address.
        log: The file that all its containers' output is appended to.
    """

    def __init__(
        self,
        pod: Pod,
        cluster: Cluster,
        program: pathlib.Path | None = None,
        arguments: Sequence[str] = (),
        **environ: str,
    ) -> None:
        self.pod = pod
        self.ip = ""
        self._cluster = cluster
        self._program = program
        self._arguments = arguments
        self._environ = environ
        self._ports = {port["name"]: port["containerPort"] for port in pod.container.get("ports", ())}
        self._container: Container | None = None
        self.log = cluster.directory / f"{pod.name}-{id(self):x}.log"

    @property
    def address(self) -> str:
        """Where it serves workers."""
        return f"{self.ip}:{self._ports['grpc']}"

    @property
    def status(self) -> int | None:
        """The status that its container has ended with; None while it runs."""
        assert self._container is not None
        return self._container.status

    def launch(self) -> None:
        """Starts its container; once more: at the same address, as behind a service of its own."""
        self.ip = self.ip or self._cluster.join(self.pod)
        container = self.pod.container
        of = image("aggregator" if self.pod.is_aggregator else "worker")
        folder = self._cluster.folder()
        mounted = mounts(self.pod, self._cluster.secrets, folder)
        for target, source in of.files.items():
            shutil.copy(self._program or source, mounted.work / pathlib.PurePath(target).name)
        command = [*container.get("command", of.command), *container.get("args", ()), *self._arguments]
        # "Any address" is the pod's own; here all pods share this machine's.
        environ = {k: v.replace("0.0.0.0:", f"{self.ip}:") for k, v in self.pod.environ.items()}
        with self.log.open("a") as log:
            self._container = Container(self.pod, mounted, command, of.environ | environ | self._environ, log)

    def start(self) -> None:
        """Starts it, and waits until it is ready, as its probes say."""
        self.launch()
        self.await_ready()

    def await_ready(self) -> None:
        """Waits until it is ready, as its probes say."""
        if "startupProbe" in self.pod.container:
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
            with urllib.request.urlopen(f"http://{self.ip}:{self._ports[port]}{path}", timeout=timeout) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def terminate(self) -> None:
        """Asks it to end, as a kubelet does when a pod is deleted: its preStop hook, then SIGTERM."""
        if hook := self.pod.container.get("lifecycle", {}).get("preStop"):
            subprocess.run(hook["exec"]["command"], check=True, timeout=self.grace)
        self.signal(signal.SIGTERM)

    @property
    def grace(self) -> float:
        """Seconds between SIGTERM and SIGKILL, of which the preStop hook takes some."""
        return float(self.pod.spec.get("terminationGracePeriodSeconds", 30))

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to process 1 of its container."""
        assert self._container is not None
        self._container.signal(number)

    def wait(self, seconds: float | None = None) -> int:
        """Waits for its end, by default for as long as Kubernetes does before it kills; returns the status.

        Raises:
            AssertionError: It still runs.
        """
        assert self._container is not None
        seconds = self.grace if seconds is None else seconds
        try:
            return self._container.wait(seconds)
        except subprocess.TimeoutExpired:
            end = self.log.read_text()[-2000:]
            raise AssertionError(f"{self.pod.name} still runs after {seconds:g} s; it wrote:\n{end}") from None

    def kill(self) -> int:
        """Has the kernel kill it, as where memory lacks; returns the status."""
        self.signal(signal.SIGKILL)
        return self.wait(_KILLED_SECONDS)

    def close(self) -> None:
        """Kills it where it runs."""
        if self._container is not None:
            self._container.close()

    @property
    def lines(self) -> list[str]:
        """What it has written."""
        return self.log.read_text().splitlines()

    def _await(self, kind: str, seconds: float | None = None) -> None:
        probe = self.pod.container[kind]
        deadline = time.monotonic() + (seconds or probe["periodSeconds"] * probe["failureThreshold"])
        while self.probe(kind) != 200:
            assert self.status is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{kind}: {self.log.read_text()}"
            time.sleep(0.05)


def secrets(resources: "tuple[Resource, ...]", *names: str) -> dict[str, dict[str, bytes]]:
    """The secrets that pods mount: a certificate as cert-manager or its user would make it, and tokens.

    Args:
        resources: The overlay's.
        names: More names that the certificate is for.
    """
    found: dict[str, dict[str, bytes]] = {
        "psum-tokens": {"tokens": f"{TOKEN}\n".encode()},
        "training-token": {"token": TOKEN.encode()},
    }
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    wanted = {"psum-aggregator-tls": _NAMES}
    for certificate in (r["spec"] for r in resources if r["kind"] == "Certificate" and "dnsNames" in r["spec"]):
        wanted[certificate["secretName"]] = certificate["dnsNames"]
    for secret, of in wanted.items():
        made = authority.issue_cert(*of, *names, key_type=trustme.KeyType.ECDSA)
        found[secret] = {
            "ca.crt": authority.cert_pem.bytes(),
            "tls.crt": b"".join(blob.bytes() for blob in made.cert_chain_pems),
            "tls.key": made.private_key_pem.bytes(),
        }
    return found


def worker_settings(pod: Pod, secret: Mapping[str, Mapping[str, bytes]], directory: pathlib.Path) -> dict[str, Any]:
    """Settings of a worker in this process that fit an aggregator: its files, written to a directory."""
    if "PSUM_AGGREGATOR_TLS_CERT" not in pod.environ:
        return {}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "ca.crt").write_bytes(secret["psum-aggregator-tls"]["ca.crt"])
    (directory / "token").write_bytes(secret["training-token"]["token"])
    return {
        "tls_ca": str(directory / "ca.crt"),
        "token_file": str(directory / "token"),
        "tls_server_name": f"{pod.name}.{pod.subdomain}.{NAMESPACE}.svc",
    }


@contextlib.contextmanager
def running(*processes: PodProcess) -> Iterator[None]:
    """Starts pods, all at a time; at the end none is left."""
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.callback(process.close)
            process.launch()
        for process in processes:
            process.await_ready()
        yield
