"""Who reaches which port: network policies, evaluated as a cluster's network does it."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.deploy.manifests import Pod, Resource

#: Where the manifests put everything that does not say another namespace.
NAMESPACE = "psum"


@dataclasses.dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod, by what policies know of it.

    Attributes:
        labels: The pod's labels.
        ports: The numbers of its named ports.
        namespace: Its namespace, which has the one label that Kubernetes gives to each.
    """

    labels: Mapping[str, str]
    ports: Mapping[str, int] = dataclasses.field(default_factory=dict)
    namespace: str = NAMESPACE

    @classmethod
    def of(cls, pod: Pod) -> "Peer":
        """A pod of the manifests."""
        return cls(pod.labels, {port["name"]: port["containerPort"] for port in pod.container.get("ports", ())})

    @property
    def namespace_labels(self) -> Mapping[str, str]:
        """The labels of its namespace."""
        return {"kubernetes.io/metadata.name": self.namespace}


def reaches(resources: Sequence[Resource], source: Peer, target: Peer, port: int) -> bool:
    """Whether a TCP connection from one pod to a port of another is let out and let in."""
    policies = [resource for resource in resources if resource["kind"] == "NetworkPolicy"]
    return _allowed(policies, "Egress", source, target, target, port) and _allowed(
        policies, "Ingress", target, source, target, port
    )


def open_ports(resources: Sequence[Resource], source: Peer, target: Peer) -> set[str]:
    """The names of a pod's ports that another one reaches."""
    return {name for name, port in target.ports.items() if reaches(resources, source, target, port)}


def selects(selector: Resource, labels: Mapping[str, str]) -> bool:
    """Whether a label selector takes in something with these labels; an empty one takes in everything."""
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


def _allowed(policies: Sequence[Resource], way: str, subject: Peer, other: Peer, target: Peer, port: int) -> bool:
    """Whether the policies that select the subject allow it; where none does, everything is allowed."""
    chosen = [
        policy["spec"]
        for policy in policies
        if policy["metadata"].get("namespace", NAMESPACE) == subject.namespace
        and way in _types(policy["spec"])
        and selects(policy["spec"]["podSelector"], subject.labels)
    ]
    return not chosen or any(
        _matches_peer(rule, way, subject.namespace, other) and _matches_port(rule, target, port)
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
            # Of addresses outside, which no pod has.
            continue
        if "namespaceSelector" in peer:
            fits = selects(peer["namespaceSelector"], other.namespace_labels)
        else:
            fits = other.namespace == namespace
        if fits and selects(peer.get("podSelector", {}), other.labels):
            return True
    return False


def _matches_port(rule: Resource, target: Peer, port: int) -> bool:
    ports: Any = rule.get("ports")
    if not ports:
        return True
    for entry in ports:
        if entry.get("protocol", "TCP") != "TCP":
            continue
        first = entry.get("port", 1)
        last = entry.get("endPort", first if "port" in entry else 65535)
        first, last = (target.ports.get(p, -1) if isinstance(p, str) else p for p in (first, last))
        if first <= port <= last:
            return True
    return False
