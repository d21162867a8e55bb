"""Evaluates network policies as a cluster's network does: who reaches which port."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.deploy.manifests import Pod, Resource

#: The namespace of everything in the manifests that names no other.
NAMESPACE = "psum"


@dataclasses.dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod, with the properties that policies use.

    Attributes:
        labels: The pod's labels.
        ports: The numbers of its named ports.
        namespace: Its namespace. Its only label is the one that Kubernetes gives to each namespace.
    """

    labels: Mapping[str, str]
    ports: Mapping[str, int] = dataclasses.field(default_factory=dict)
    namespace: str = NAMESPACE

    @classmethod
    def of(cls, pod: Pod) -> "Peer":
        """Makes a peer from a pod of the manifests."""
        return cls(pod.labels, {port["name"]: port["containerPort"] for port in pod.container.get("ports", ())})

    @property
    def namespace_labels(self) -> Mapping[str, str]:
        """The labels of its namespace."""
        return {"kubernetes.io/metadata.name": self.namespace}


def reaches(resources: Sequence[Resource], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether policies allow traffic from one pod to a port of another, at both ends. By default, TCP connections."""
    policies = [resource for resource in resources if resource["kind"] == "NetworkPolicy"]
    return _allowed(policies, "Egress", source, target, (target, port, protocol)) and _allowed(
        policies, "Ingress", target, source, (target, port, protocol)
    )


def open_ports(resources: Sequence[Resource], source: Peer, target: Peer) -> set[str]:
    """The names of the target's ports that the source reaches."""
    return {name for name, port in target.ports.items() if reaches(resources, source, target, port)}


def selects(selector: Resource, labels: Mapping[str, str]) -> bool:
    """Whether a label selector matches these labels. An empty selector matches everything."""
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for expression in selector.get("matchExpressions", ()):
        key, values = expression["key"], expression.get("values", ())
        match expression["operator"]:
            case "In":
                fits = labels.get(key) in values
            case "NotIn":
                fits = labels.get(key) not in values
            case "Exists":
                fits = key in labels
            case "DoesNotExist":
                fits = key not in labels
            case operator:
                raise ValueError(f"no such operator: {operator}")
        if not fits:
            return False
    return True


def _allowed(
    policies: Sequence[Resource], way: str, subject: Peer, other: Peer, reached: tuple[Peer, int, str]
) -> bool:
    """Whether the policies that select the subject allow the connection. If none selects it, all are allowed."""
    chosen = [
        policy["spec"]
        for policy in policies
        if policy["metadata"].get("namespace", NAMESPACE) == subject.namespace
        and way in _types(policy["spec"])
        and selects(policy["spec"]["podSelector"], subject.labels)
    ]
    return not chosen or any(
        _matches_peer(rule, way, subject.namespace, other) and _matches_port(rule, *reached)
        for spec in chosen
        for rule in spec.get(way.lower(), ())
    )


def _types(spec: Resource) -> Iterator[str]:
    yield from spec.get("policyTypes", ["Ingress", "Egress"] if "egress" in spec else ["Ingress"])


def _matches_peer(rule: Resource, way: str, namespace: str, other: Peer) -> bool:
    peers: Any = rule.get("from" if way == "Ingress" else "to")
    if not peers:
        return True
    for peer in peers:
        if "ipBlock" in peer:
            # Address blocks are for addresses outside the cluster. No pod has one.
            continue
        if "namespaceSelector" in peer:
            fits = selects(peer["namespaceSelector"], other.namespace_labels)
        else:
            fits = other.namespace == namespace
        if fits and selects(peer.get("podSelector", {}), other.labels):
            return True
    return False


def _matches_port(rule: Resource, target: Peer, port: int, protocol: str) -> bool:
    ports: Any = rule.get("ports")
    if not ports:
        return True
    for entry in ports:
        if entry.get("protocol", "TCP") != protocol:
            continue
        first = entry.get("port", 1)
        last = entry.get("endPort", first if "port" in entry else 65535)
        first, last = (target.ports.get(p, -1) if isinstance(p, str) else p for p in (first, last))
        if first <= port <= last:
            return True
    return False
