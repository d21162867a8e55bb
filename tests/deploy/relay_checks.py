"""Checks of relays: workers find the relay of their node or pod, and relays find the fleet."""

import ipaddress
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from psum.aggregator import Settings as AggregatorSettings
from psum.client import Settings as WorkerSettings
from psum.wire.errors import ConfigurationError
from tests.deploy import network
from tests.deploy.manifests import Pod, Resource, pods

#: The cluster's DNS, as a pod.
_DNS = network.Peer({"k8s-app": "kube-dns"}, {"dns": 53}, namespace="kube-system")

_HOST_NAME = "kubernetes.io/hostname"


def relay_mistakes(resources: Sequence[Resource]) -> Iterator[str]:
    """Yields a message for each mistake in relays, and in workers that use one.

    Whether workers find a relay of their node can be told only if the fleet is among the resources.
    """
    for check in _OF_RELAYS:
        yield from check(resources)
    groups: dict[tuple[str, str], list[Pod]] = {}
    for pod in pods(resources):
        groups.setdefault((pod.owner, pod.name), []).append(pod)
    for (owner, _), group in groups.items():
        workers = [pod for pod in group if not pod.is_aggregator]
        if any(pod.environ.get("PSUM_RELAY") for pod in workers):
            try:
                yield from (f"{owner}: {text}" for text in _of_workers(resources, group, workers))
            except ConfigurationError:
                # Another check reports it.
                continue


def _daemon_sets(resources: Sequence[Resource]) -> Iterator[tuple[str, Resource]]:
    for resource in resources:
        if resource["kind"] == "DaemonSet":
            yield f"DaemonSet/{resource['metadata']['name']}", resource["spec"]


def _services(resources: Sequence[Resource], pod: Pod) -> list[Resource]:
    """The services that lead to a pod."""
    return [r for r in resources if r["kind"] == "Service" and r["spec"]["selector"].items() <= pod.labels.items()]


def _updates(resources: Sequence[Resource]) -> Iterator[str]:
    """An update replaces one relay after the other. There are never two on a node."""
    for name, spec in _daemon_sets(resources):
        strategy = spec.get("updateStrategy", {})
        rolling = strategy.get("rollingUpdate", {})
        if strategy.get("type") != "RollingUpdate":
            yield f"{name}: an apply would not update its pods; use RollingUpdate"
        if rolling.get("maxUnavailable") != 1:
            yield f"{name}: an update may take several relays away at once; set maxUnavailable: 1"
        if rolling.get("maxSurge"):
            yield f"{name}: two relays on a node would divide a group's workers among them; leave maxSurge out"


def _room(resources: Sequence[Resource]) -> Iterator[str]:
    """A relay gets room on a full node. Its node's workers would wait for it for ever."""
    for name, spec in _daemon_sets(resources):
        if "priorityClassName" not in spec["template"]["spec"]:
            yield f"{name}: on a node that workers fill, it would stay Pending; give it a priority"


def _own_network(resources: Sequence[Resource]) -> Iterator[str]:
    """Network policies cover a relay, and it fits the restricted standard without shared memory."""
    for name, spec in _daemon_sets(resources):
        pod = spec["template"]["spec"]
        ports = [port for container in pod["containers"] for port in container["ports"]]
        if pod.get("hostNetwork") or any("hostPort" in port for port in ports):
            yield f"{name}: network policies do not cover the node's own ports; workers reach it by its Service"


def _addresses(resources: Sequence[Resource]) -> Iterator[str]:
    """A Service leads each worker to its own node's relay, at the ports that the relay has."""
    for pod in (pod for pod in pods(resources) if pod.owner.startswith("DaemonSet/")):
        services = _services(resources, pod)
        if not services:
            yield f"{pod.owner}: no Service leads to it"
        for service in services:
            name, spec = f"Service/{service['metadata']['name']}", service["spec"]
            if spec.get("internalTrafficPolicy") != "Local" or spec.get("clusterIP") == "None":
                yield f"{name}: workers would reach relays of other nodes; set internalTrafficPolicy: Local"
            if not spec.get("publishNotReadyAddresses"):
                yield f"{name}: a worker could not tell a relay that starts from none; set publishNotReadyAddresses"
            ports = {port["name"]: port["port"] for port in spec["ports"]}
            if str(ports.get("data")) != pod.environ["PSUM_DATA_PORT"]:
                yield f"{name}: relays tell workers the data port {pod.environ['PSUM_DATA_PORT']}, which it has not"


def _ways(resources: Sequence[Resource]) -> Iterator[str]:
    """The network policies let a node's relay reach all processes of the fleet, and the names of the fleet."""
    all_pods = list(pods(resources))
    for relay in (pod for pod in all_pods if pod.owner.startswith("DaemonSet/")):
        source = network.Peer.of(relay)
        for owner in {pod.owner: pod for pod in all_pods if pod.is_aggregator and not pod.is_relay}.values():
            reached = network.open_ports(resources, source, network.Peer.of(owner))
            if missing := sorted(owner.streams - reached):
                yield f"{relay.owner}: the network policies keep it from port {', '.join(missing)} of {owner.owner}"
        for protocol in ("UDP", "TCP"):
            if not network.reaches(resources, source, _DNS, 53, protocol):
                yield f"{relay.owner}: the network policies keep it from the cluster's DNS ({protocol})"


def _no_others(resources: Sequence[Resource]) -> Iterator[str]:
    """Relays forward, and the fleet's aggregators refuse to, because network policies keep them from it."""
    for pod in pods(resources):
        if pod.is_aggregator and (pod.environ.get("PSUM_RELAYING") != "0") is not pod.is_relay:
            wanted = "leave PSUM_RELAYING out" if pod.is_relay else 'set PSUM_RELAYING: "0"'
            yield f"{pod.owner}: it is {'a' if pod.is_relay else 'no'} relay; {wanted}"


_OF_RELAYS: tuple[Callable[[Sequence[Resource]], Iterator[str]], ...] = (
    _updates,
    _room,
    _own_network,
    _addresses,
    _ways,
    _no_others,
)


def _of_workers(resources: Sequence[Resource], group: list[Pod], workers: list[Pod]) -> Iterator[str]:
    """Yields what is wrong with the workers of one pod, which use a relay."""
    settings = [WorkerSettings.from_environment(pod.environ) for pod in workers]
    if len({s.relay for s in settings}) > 1:
        yield "the workers of a pod name different relays (PSUM_RELAY)"
        return
    if not settings[0].relays:
        return
    yield from _sizes(resources, workers, settings)
    host, _, port = settings[0].relays[0].address.rpartition(":")
    if _is_loopback(host):
        relays = [pod for pod in group if pod.is_sidecar and pod.environ.get("PSUM_LISTEN") == f"{host}:{port}"]
        if not relays:
            yield f"no relay in its own pod listens on {host}:{port} (PSUM_RELAY)"
    else:
        yield from _apart(workers[0])
        if not any(pod.is_aggregator and not pod.is_sidecar for pod in pods(resources)):
            return
        relays = [pod for pod in pods(resources) if pod.owner.startswith("DaemonSet/")]
        relays = [pod for pod in relays if (host, port) in _names(resources, pod)]
        if not relays:
            yield f"no relay of its node has the address {host}:{port} (PSUM_RELAY)"
        for relay in relays:
            yield from _same_nodes(relay, workers[0])
    for relay in relays:
        yield from _memory(relay, workers)
        yield from _way_up(relay, settings)


def _sizes(resources: Sequence[Resource], workers: list[Pod], settings: list[Any]) -> Iterator[str]:
    """The relay expects exactly the workers that the pod has. Local ranks and ranks are complete."""
    if {s.local_size for s in settings} != {len(workers)}:
        yield f"PSUM_LOCAL_SIZE is not {len(workers)}, the number of workers in the pod, for which the relay waits"
    if sorted(s.local_rank for s in settings) != list(range(len(workers))):
        yield f"the local ranks (PSUM_LOCAL_RANK) are not 0 to {len(workers) - 1}"
    every = [pod for pod in pods(resources) if pod.owner == workers[0].owner and not pod.is_aggregator]
    ranks = sorted(WorkerSettings.from_environment(pod.environ).rank for pod in every)
    if ranks != list(range(settings[0].num_workers)):
        yield f"the ranks of all pods are not 0 to {settings[0].num_workers - 1} (PSUM_NUM_WORKERS)"


def _apart(worker: Pod) -> Iterator[str]:
    """Two pods of a training are never on one node."""
    affinity = worker.spec.get("affinity", {}).get("podAntiAffinity", {})
    for term in affinity.get("requiredDuringSchedulingIgnoredDuringExecution", ()):
        if term["topologyKey"] == _HOST_NAME and network.selects(term["labelSelector"], worker.labels):
            return
    yield "two of its pods on one node would be too many workers for the relay; keep them apart (podAntiAffinity)"


def _names(resources: Sequence[Resource], relay: Pod) -> Iterator[tuple[str, str]]:
    """Yields the host and port of each address of a node's relay."""
    for service in _services(resources, relay):
        ports = [port["port"] for port in service["spec"]["ports"] if port["targetPort"] == "grpc"]
        name = f"{service['metadata']['name']}.{service['metadata'].get('namespace', network.NAMESPACE)}.svc"
        yield from ((host, str(port)) for port in ports for host in (name, f"{name}.cluster.local"))


def _same_nodes(relay: Pod, worker: Pod) -> Iterator[str]:
    """The relay runs wherever the worker may."""
    if not relay.spec.get("nodeSelector", {}).items() <= worker.spec.get("nodeSelector", {}).items():
        yield f"it may run on a node without a relay; select nodes by {relay.spec['nodeSelector']}"
    tolerated = relay.spec.get("tolerations", ())
    for taint in worker.spec.get("tolerations", ()):
        # Kubernetes itself lets a DaemonSet's pods tolerate nodes that are not ready.
        if taint.get("effect") != "NoExecute" and not any(_covers(other, taint) for other in tolerated):
            yield f"it tolerates {taint['key']}, but the relay does not"


def _covers(other: Resource, taint: Resource) -> bool:
    return other.get("key") in (None, taint.get("key")) and other.get("effect") in (None, taint.get("effect"))


def _memory(relay: Pod, workers: list[Pod]) -> Iterator[str]:
    """The relay and its workers share memory, or none of them has it from where others could."""
    shared = _shared(relay)
    for worker in workers:
        if _shared(worker) != shared:
            yield f"it has shared memory from {_shared(worker) or 'itself'}, but the relay from {shared or 'itself'}"
        elif shared and worker.spec["securityContext"]["runAsUser"] != relay.spec["securityContext"]["runAsUser"]:
            yield "it shares no memory with the relay, because they run as different users"


def _way_up(relay: Pod, workers: list[Any]) -> Iterator[str]:
    """The relay may pass the workers' token on, and waits for the fleet for as long as they would."""
    settings = AggregatorSettings.from_environment(relay.environ)
    if any(worker.token_file for worker in workers) and not settings.relay_tls_ca and not settings.insecure:
        yield "its relay would not pass its token on unencrypted; give it the fleet's authority (PSUM_RELAY_TLS_CA)"
    for name in ("connect_timeout", "reconnect_timeout"):
        own, theirs = getattr(settings, name), max(getattr(worker, name) for worker in workers)
        if own < theirs:
            yield f"its relay gives an aggregator up after {own:g} s (PSUM_{name.upper()}), and it after {theirs:g} s"


def _shared(pod: Pod) -> str:
    """Where a container's shared memory comes from, if another container could have it from there too."""
    directory = pod.environ.get("PSUM_SHM_DIRECTORY", "/dev/shm")
    for mount in pod.container.get("volumeMounts", ()):
        if mount["mountPath"] == directory:
            volume = next(v for v in pod.spec["volumes"] if v["name"] == mount["name"])
            if "hostPath" in volume:
                return f"the node's {volume['hostPath']['path']}"
            several = any(c.get("restartPolicy") == "Always" for c in pod.spec.get("initContainers", ()))
            return f"the pod's {mount['name']}" if several else ""
    return ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
