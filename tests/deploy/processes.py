"""Runs pods as processes, each with its command, environment, files and user, at an address of this machine."""

import contextlib
import itertools
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import trustme

from tests.deploy.containers import Container, mounts
from tests.deploy.manifests import Pod, Resource, image

#: The token of the tests' job. It is long enough for aggregators to accept it.
TOKEN = "a-token-that-only-the-tests-have-0123456789"

NAMESPACE = "psum"

#: How long a killed container may take to end.
_KILLED_SECONDS = 10.0

#: The names in the certificate that cert-manager or a user makes for the aggregators.
_NAMES = ("*.psum-aggregator.psum.svc", "*.psum-aggregator.psum.svc.cluster.local")


@contextlib.contextmanager
def pod_files() -> Iterator[pathlib.Path]:
    """Makes a folder for the files of pods. pytest's folder would not do, because only this user may enter it."""
    made = pathlib.Path(tempfile.mkdtemp(prefix="pods-"))
    try:
        yield made
    finally:
        shutil.rmtree(made)


class Cluster:
    """A namespace of a cluster: addresses, names and secrets.

    Each pod has a loopback address of its own with the ports of its manifest. Pods find each other by the names that
    the cluster's DNS has. All others see a replaced pod's new address at once, as with a DNS without a cache.

    Args:
        directory: A folder for the pods' files and logs.
        secrets: The keys and values of each secret that pods mount, by the secret's name.
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
        """Gives a pod a new address, to which its names resolve from now on; returns the address.

        The cluster has one node. So the name of a DaemonSet's Service leads to its only pod.
        """
        address = next(self._next)
        kind, _, owner = pod.owner.partition("/")
        if name := owner if kind == "DaemonSet" else pod.subdomain and f"{pod.name}.{pod.subdomain}":
            self.addresses[name] = address
            self._tell()
        return address

    def folder(self) -> pathlib.Path:
        """A folder that does not exist yet, for a container's files."""
        return self.directory / f"container-{next(self._folders)}"

    def _tell(self) -> None:
        lines = ["127.0.0.1 localhost"]
        for name, address in self.addresses.items():
            lines.append(f"{address} {name} {name}.{NAMESPACE}.svc {name}.{NAMESPACE}.svc.cluster.local")
        text = "".join(f"{line}\n" for line in lines).encode()
        # Rewrite the file in place: running containers have it mounted. Never empty it: they may read it at any moment.
        file = os.open(self.directory / "hosts", os.O_WRONLY | os.O_CREAT)
        try:
            os.pwrite(file, text, 0)
            os.ftruncate(file, len(text))
        finally:
            os.close(file)


class PodProcess:
    """One pod, as a kubelet would run it.

    Args:
        pod: The pod.
        cluster: The cluster in which it runs.
        program: A program to run instead of the image's.
        arguments: Additional arguments of its command.
        beside: Another container of the same pod, which has the same address and the same shared memory.
        environ: Variables that replace those of the pod.

    Attributes:
        ip: Its address.
        log: The file to which the output of all its containers is appended.
    """

    def __init__(
        self,
        pod: Pod,
        cluster: Cluster,
        program: pathlib.Path | None = None,
        arguments: Sequence[str] = (),
        beside: "PodProcess | None" = None,
        **environ: str,
    ) -> None:
        self.pod = pod
        self.ip = ""
        self._beside = beside
        self._memory: pathlib.Path | None = None
        self._cluster = cluster
        self._program = program
        self._arguments = arguments
        self._environ = environ
        self._ports = {port["name"]: port["containerPort"] for port in pod.container.get("ports", ())}
        self._container: Container | None = None
        self.log = cluster.directory / f"{pod.name}-{id(self):x}.log"

    @property
    def address(self) -> str:
        """The address at which it serves workers."""
        return f"{self.ip}:{self.pod.environ['PSUM_LISTEN'].rpartition(':')[2]}"

    @property
    def status(self) -> int | None:
        """The exit status of its container; None while it runs."""
        assert self._container is not None
        return self._container.status

    def launch(self) -> None:
        """Starts its container. A restart keeps the address, as behind a service of its own."""
        self.ip = self.ip or (self._beside.ip if self._beside else self._cluster.join(self.pod))
        container = self.pod.container
        of = image("aggregator" if self.pod.is_aggregator else "worker")
        folder = self._cluster.folder()
        mounted = mounts(self.pod, self._cluster.secrets, folder, self._shared_memory())
        for target, source in of.files.items():
            shutil.copy(self._program or source, mounted.work / pathlib.PurePath(target).name)
        command = [*container.get("command", of.command), *container.get("args", ()), *self._arguments]
        # 0.0.0.0 stands for all addresses of the pod, and 127.0.0.1 for one that it has for itself. Here all pods would
        # have them in common.
        own = re.compile(r"(0\.0\.0\.0|127\.0\.0\.1):")
        environ = {k: own.sub(f"{self.ip}:", v) for k, v in self.pod.environ.items()}
        with self.log.open("a") as log:
            self._container = Container(self.pod, mounted, command, of.environ | environ | self._environ, log)

    def _shared_memory(self) -> pathlib.Path | None:
        """The folder in memory that the pod's containers share; None if this is the only one."""
        if self._beside is not None:
            return self._beside._shared_memory()
        if self._memory is None and len([*self.pod.spec.get("initContainers", ()), *self.pod.spec["containers"]]) > 1:
            self._memory = pathlib.Path(tempfile.mkdtemp(prefix="pod-", dir="/dev/shm"))
            self._memory.chmod(0o1777)
        return self._memory

    def start(self) -> None:
        """Starts the pod, and waits until its probes say that it is ready."""
        self.launch()
        self.await_ready()

    def await_ready(self) -> None:
        """Waits until its probes say that it is ready."""
        if "startupProbe" in self.pod.container:
            self._await("startupProbe")
        self._await("readinessProbe", seconds=60)
        assert self.probe("livenessProbe") == 200

    def probe(self, kind: str) -> int:
        """The HTTP status of its answer to a probe; 0 if it does not answer in time."""
        probe = self.pod.container[kind]
        return self.get(probe["httpGet"]["port"], probe["httpGet"]["path"], probe.get("timeoutSeconds", 1))

    def get(self, port: str, path: str, timeout: float = 5) -> int:
        """The HTTP status of its answer at a path of one of its ports; 0 if it does not answer in time."""
        try:
            with urllib.request.urlopen(f"http://{self.ip}:{self._ports[port]}{path}", timeout=timeout) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def terminate(self) -> None:
        """Asks the pod to end, as a kubelet does when a pod is deleted: runs its preStop hook, then sends SIGTERM."""
        if hook := self.pod.container.get("lifecycle", {}).get("preStop"):
            subprocess.run(hook["exec"]["command"], check=True, timeout=self.grace)
        self.signal(signal.SIGTERM)

    @property
    def grace(self) -> float:
        """Seconds from the deletion of the pod to SIGKILL. They include the preStop hook."""
        return float(self.pod.spec.get("terminationGracePeriodSeconds", 30))

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to process 1 of its container."""
        assert self._container is not None
        self._container.signal(number)

    def wait(self, seconds: float | None = None) -> int:
        """Waits for its end, by default for its grace period; returns its exit status.

        Raises:
            AssertionError: The pod still runs.
        """
        assert self._container is not None
        seconds = self.grace if seconds is None else seconds
        try:
            return self._container.wait(seconds)
        except subprocess.TimeoutExpired:
            end = self.log.read_text()[-2000:]
            raise AssertionError(f"{self.pod.name} still runs after {seconds:g} s; it wrote:\n{end}") from None

    def kill(self) -> int:
        """Kills it with SIGKILL, as the kernel does when memory runs out; returns its exit status."""
        self.signal(signal.SIGKILL)
        return self.wait(_KILLED_SECONDS)

    def close(self) -> None:
        """Kills it if it runs. Call this last for the container beside which the others are."""
        if self._container is not None:
            self._container.close()
        if self._memory is not None:
            shutil.rmtree(self._memory, ignore_errors=True)
            self._memory = None

    @property
    def lines(self) -> list[str]:
        """The lines that it has printed."""
        return self.log.read_text().splitlines()

    def _await(self, kind: str, seconds: float | None = None) -> None:
        probe = self.pod.container[kind]
        deadline = time.monotonic() + (seconds or probe["periodSeconds"] * probe["failureThreshold"])
        while self.probe(kind) != 200:
            assert self.status is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{kind}: {self.log.read_text()}"
            time.sleep(0.05)


def secrets(resources: "tuple[Resource, ...]", *names: str) -> dict[str, dict[str, bytes]]:
    """Makes the secrets that pods mount: tokens, and certificates as cert-manager or a user would make them.

    Args:
        resources: The overlay's resources.
        names: Additional names for the certificates.
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
    """Returns settings with which a worker in this process joins an aggregator. Writes their files to a directory."""
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
    """Starts pods at the same time, and waits until all are ready. Kills them at the end."""
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.callback(process.close)
            process.launch()
        for process in processes:
            process.await_ready()
        yield
