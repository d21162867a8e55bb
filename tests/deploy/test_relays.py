"""Relays in Kubernetes: one for each node as a DaemonSet, or one in each pod of workers."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from psum.client import Settings as WorkerSettings
from tests.deploy.checks import mistakes
from tests.deploy.manifests import KUBERNETES, RENDERED, Resource, pods, rendered
from tests.deploy.network import NAMESPACE, Peer, open_ports, reaches

WITH_RELAYS = ("relays", "own-certificates, relays")

#: The cluster's DNS, and pods that do not belong to psum.
DNS = Peer({"k8s-app": "kube-dns"}, {"dns": 53}, namespace="kube-system")
STRANGER = Peer({"app.kubernetes.io/name": "other"}, {"http": 80})
PROMETHEUS = Peer({"app.kubernetes.io/name": "prometheus"}, namespace="monitoring")


def named(kind: str, name: str, resources: Any) -> Any:
    """The specification of a resource."""
    return next(r for r in resources if r["kind"] == kind and r["metadata"]["name"] == name)["spec"]


def relays(resources: Any) -> Any:
    """The specification of the DaemonSet."""
    return named("DaemonSet", "psum-aggregator-relay", resources)


def service(resources: Any) -> Any:
    """The specification of the relays' Service."""
    return named("Service", "psum-aggregator-relay", resources)


def job_pod(resources: Any) -> Any:
    """The specification of the workers' pods."""
    return named("Job", "training", resources)["template"]["spec"]


def set_variables(containers: Any, **values: str) -> None:
    """Gives variables of some containers other values."""
    for container in containers:
        kept = [entry for entry in container["env"] if entry["name"] not in values]
        container["env"] = kept + [{"name": name, "value": value} for name, value in values.items()]


#: Possible mistakes in the overlay with its workers, by a part of the message about each.
MISTAKES: dict[str, Callable[[Any], object]] = {
    "take several relays away at once": lambda r: relays(r)["updateStrategy"]["rollingUpdate"].update(
        maxUnavailable="100%"
    ),
    "two relays on a node": lambda r: relays(r)["updateStrategy"]["rollingUpdate"].update(maxSurge=1),
    "an apply would not update its pods": lambda r: relays(r).update(updateStrategy={"type": "OnDelete"}),
    "it would stay Pending": lambda r: relays(r)["template"]["spec"].pop("priorityClassName"),
    "do not cover the node's own ports": lambda r: relays(r)["template"]["spec"]["containers"][0]["ports"][0].update(
        hostPort=50051
    ),
    "no Service leads to it": lambda r: service(r)["selector"].update(other="x"),
    "workers would reach relays of other nodes": lambda r: service(r).pop("internalTrafficPolicy"),
    "a relay that starts from none": lambda r: service(r).pop("publishNotReadyAddresses"),
    "tell workers the data port 50052, which it has not": lambda r: service(r)["ports"][1].update(port=50062),
    "no relay of its node has the address psum-aggregator-relay.psum.svc:50051": lambda r: service(r)["ports"][
        0
    ].update(port=50061),
    "Job/training: no relay of its node has the address": lambda r: r.remove(
        next(x for x in r if x["kind"] == "DaemonSet")
    ),
    "keep it from port data, grpc of StatefulSet/psum-aggregator": lambda r: named(
        "NetworkPolicy", "psum-aggregator-from-relays", r
    ).update(ingress=[]),
    "keep it from port data of StatefulSet/psum-aggregator": lambda r: named(
        "NetworkPolicy", "psum-aggregator-relay", r
    )["egress"][0]["ports"].pop(),
    "keep it from the cluster's DNS (UDP)": lambda r: named("NetworkPolicy", "psum-aggregator-relay", r)[
        "egress"
    ].pop(),
    "DaemonSet/psum-aggregator-relay: the network policy keeps workers": lambda r: named(
        "NetworkPolicy", "psum-aggregator-relay", r
    )["ingress"][0]["ports"].pop(),
    "DaemonSet: there is no such service account": lambda r: relays(r)["template"]["spec"].update(
        serviceAccountName="other"
    ),
    "DaemonSet/psum-aggregator-relay: no pod has the labels": lambda r: relays(r)["selector"]["matchLabels"].update(
        other="x"
    ),
    "DaemonSet/psum-aggregator-relay: it may be killed before": lambda r: relays(r)["template"]["spec"].update(
        terminationGracePeriodSeconds=30
    ),
    "may run on a node without a relay": lambda r: job_pod(r).pop("nodeSelector"),
    "it tolerates nvidia.com/gpu, but the relay does not": lambda r: (
        relays(r)["template"]["spec"].pop("tolerations"),
        job_pod(r)["tolerations"].append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}),
    ),
    "keep them apart": lambda r: job_pod(r).pop("affinity"),
    "name different relays": lambda r: set_variables(job_pod(r)["containers"][:1], PSUM_RELAY="off"),
    "PSUM_LOCAL_SIZE is not 2": lambda r: set_variables(
        job_pod(r)["containers"], PSUM_LOCAL_SIZE="4", PSUM_NUM_WORKERS="8"
    ),
    "PSUM_LOCAL_SIZE is not 1, the number of workers in the pod": lambda r: job_pod(r)["containers"].pop(),
    "are not 0 to 1": lambda r: set_variables(job_pod(r)["containers"], PSUM_LOCAL_RANK="0"),
    "the ranks of all pods are not 0 to 7": lambda r: set_variables(job_pod(r)["containers"], PSUM_NUM_WORKERS="8"),
    "from itself, but the relay from the node's /dev/shm": lambda r: job_pod(r).update(
        volumes=[v for v in job_pod(r)["volumes"] if v["name"] != "shared-memory"]
        + [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
    ),
    "would not pass its token on": lambda r: set_variables(
        relays(r)["template"]["spec"]["containers"], PSUM_RELAY_TLS_CA=""
    ),
    "it is a relay; leave PSUM_RELAYING out": lambda r: set_variables(
        relays(r)["template"]["spec"]["containers"], PSUM_RELAYING="0"
    ),
    'it is no relay; set PSUM_RELAYING: "0"': lambda r: set_variables(
        named("StatefulSet", "psum-aggregator", r)["template"]["spec"]["containers"], PSUM_RELAYING="1"
    ),
    "gives an aggregator up after 120 s": lambda r: set_variables(
        relays(r)["template"]["spec"]["containers"], PSUM_RECONNECT_TIMEOUT="120s"
    ),
    "PSUM_RELAY_TLS_CA=/etc/psum/ca.crt is not in a mounted secret": lambda r: set_variables(
        relays(r)["template"]["spec"]["containers"], PSUM_RELAY_TLS_CA="/etc/psum/ca.crt"
    ),
    "they run as different users": lambda r: job_pod(r)["securityContext"].update(runAsUser=10002),
}

#: The same for the workers that have a relay in their pods.
POD_MISTAKES: dict[str, Callable[[Any], object]] = {
    "no relay in its own pod listens on 127.0.0.1:50051": lambda spec: set_variables(
        spec["initContainers"], PSUM_LISTEN="127.0.0.1:50061"
    ),
    # Kubernetes would wait for its end before it starts the workers.
    "no relay in its own pod listens": lambda spec: spec["initContainers"][0].pop("restartPolicy"),
    "would not pass its token on": lambda spec: set_variables(spec["initContainers"], PSUM_RELAY_TLS_CA=""),
    "but its port http is": lambda spec: set_variables(spec["initContainers"], PSUM_HTTP="127.0.0.1:8080"),
    "it is not probed": lambda spec: spec["initContainers"][0].pop("startupProbe"),
    "it may be killed before": lambda spec: set_variables(spec["initContainers"], PSUM_GRACE="25s"),
    "from itself, but the relay from the pod's shared-memory": lambda spec: spec["containers"][0].update(
        volumeMounts=[m for m in spec["containers"][0]["volumeMounts"] if m["name"] != "shared-memory"]
    ),
}


def overlay_with_workers() -> list[Resource]:
    """The overlay and the example of workers that fits it."""
    return copy.deepcopy([*rendered("relays"), *rendered("workers/node-relay")])


def test_the_overlay_and_its_workers_fit_together() -> None:
    """The workers name the relays' Service and the fleet's aggregators. The checks of both find nothing."""
    assert mistakes(overlay_with_workers()) == []
    workers = [WorkerSettings.from_environment(pod.environ) for pod in pods(rendered("workers/node-relay"))]
    fleet = [pod for pod in pods(rendered("relays")) if pod.is_aggregator and not pod.is_relay]
    expected = tuple(f"{pod.name}.psum-aggregator.{NAMESPACE}.svc:50051" for pod in fleet)
    assert {settings.aggregators for settings in workers} == {expected}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_found(text: str) -> None:
    """Each check reports its mistake."""
    resources = overlay_with_workers()
    MISTAKES[text](resources)
    assert any(text in found for found in mistakes(resources)), mistakes(resources)


@pytest.mark.parametrize("text", POD_MISTAKES)
def test_a_mistake_in_pods_with_a_relay_is_found(text: str) -> None:
    """Each check reports its mistake."""
    resources = copy.deepcopy(list(rendered("workers/pod-relay")))
    POD_MISTAKES[text](job_pod(resources))
    assert any(text in found for found in mistakes(resources)), mistakes(resources)


@pytest.mark.parametrize("name", WITH_RELAYS)
def test_a_relay_reaches_the_fleet_and_names_only(name: str) -> None:
    """Workers reach its streams and its data port. Nobody else of the namespace reaches anything of it."""
    resources = rendered(name)
    by_kind = {pod.owner.partition("/")[0]: Peer.of(pod) for pod in pods(resources)}
    relay, owner = by_kind["DaemonSet"], by_kind["StatefulSet"]
    worker = Peer.of(next(pods(rendered("workers/node-relay"))))
    assert open_ports(resources, relay, owner) == {"grpc", "data"}
    assert open_ports(resources, worker, relay) == {"grpc", "data"}
    assert reaches(resources, relay, DNS, 53, "UDP")
    for target, port in ((STRANGER, 80), (worker, 50051), (relay, 50051), (owner, 8080), (DNS, 443)):
        assert not reaches(resources, relay, target, port)
    for source in (STRANGER, owner, Peer(worker.labels, namespace="other")):
        assert open_ports(resources, source, relay) == set()
    monitored = any(r["kind"] == "ServiceMonitor" for r in resources)
    assert open_ports(resources, PROMETHEUS, relay) == ({"http"} if monitored else set())


def test_the_relays_certificate_is_for_the_name_that_workers_use() -> None:
    """Both sides mount the secret that it is written to. The fleet's authority signs it."""
    resources = rendered("relays")
    certificate = named("Certificate", "psum-aggregator-relay", resources)
    for pod in pods(rendered("workers/node-relay")):
        host = WorkerSettings.from_environment(pod.environ).relays[0].address.rpartition(":")[0]
        assert host in certificate["dnsNames"]
        (tls,) = (volume["secret"]["secretName"] for volume in pod.spec["volumes"] if volume["name"] == "tls")
        assert tls == certificate["secretName"]
    (tls,) = (v["secret"]["secretName"] for v in relays(resources)["template"]["spec"]["volumes"] if v["name"] == "tls")
    assert tls == certificate["secretName"]
    assert certificate["issuerRef"] == named("Certificate", "psum-aggregator", resources)["issuerRef"]


def test_pods_with_a_relay_let_nobody_in() -> None:
    """The relay serves the containers of its own pod only, and they use the aggregators of the production overlay."""
    resources = (*rendered("production"), *rendered("workers/pod-relay"))
    assert mistakes(resources) == []
    group = {pod.container["name"]: pod for pod in pods(rendered("workers/pod-relay"))}
    for source in (STRANGER, PROMETHEUS, Peer.of(group["worker-0"])):
        assert open_ports(resources, source, Peer.of(group["relay"])) == set()
    owner = Peer.of(next(pod for pod in pods(rendered("production")) if pod.is_aggregator))
    assert open_ports(resources, Peer.of(group["relay"]), owner) == {"grpc", "data"}


#: The workers of each overlay, for the level of its namespace.
IN_NAMESPACES = {
    "production": ("production", "workers/indexed-job", "workers/pod-relay"),
    "own-certificates": ("own-certificates", "own-certificates, relays"),
    "single-node": ("single-node", "workers/single-node"),
    "relays": ("relays", "workers/node-relay"),
}


@pytest.mark.parametrize("overlay", IN_NAMESPACES)
def test_pods_fit_the_level_of_their_namespace(overlay: str) -> None:
    """Only namespaces that permit it have pods with a volume or a port of the host, or in its network. A namespace
    permits it only if some pod needs it.
    """
    namespace = yaml.safe_load((KUBERNETES / RENDERED[overlay][0] / "namespace.yaml").read_text())
    level = namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    needed = False
    for pod in (pod for name in IN_NAMESPACES[overlay] for pod in pods(rendered(name))):
        text = yaml.safe_dump(pod.spec)
        needed |= bool(re.search(r"\b(hostPath|hostPort|hostNetwork|hostPID|hostIPC|privileged):", text))
    assert level == ("privileged" if needed else "restricted")
