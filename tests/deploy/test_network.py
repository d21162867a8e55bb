"""The network policies of every overlay: who reaches which port of an aggregator."""

import pytest

from tests.deploy.manifests import RENDERED, Resource, pods, rendered
from tests.deploy.network import NAMESPACE, Peer, open_ports, reaches, selects

#: Pods that do not belong to psum.
STRANGER = Peer({"app.kubernetes.io/name": "other"}, {"http": 80, "dns": 53})
PROMETHEUS = Peer({"app.kubernetes.io/name": "prometheus"}, namespace="monitoring")
INGRESS = Peer({"app.kubernetes.io/name": "ingress-nginx"}, namespace="ingress-nginx")

#: Each overlay with a fleet, and workers that may connect to it.
FLEETS = {
    name: {"single-node": "workers/single-node", "workers/jobset": "workers/jobset"}.get(
        name.partition(",")[0], "workers/indexed-job"
    )
    for name in RENDERED
    if any(pod.is_aggregator and not pod.is_relay for pod in pods(rendered(name)))
}


def aggregator(name: str) -> Peer:
    """An aggregator of an overlay that workers list, not a relay."""
    return next(Peer.of(pod) for pod in pods(rendered(name)) if pod.is_aggregator and not pod.is_relay)


def worker(name: str) -> Peer:
    """A worker that fits an overlay."""
    return next(Peer.of(pod) for pod in pods(rendered(FLEETS[name])) if not pod.is_aggregator)


@pytest.mark.parametrize("name", FLEETS)
def test_workers_reach_the_streams_and_the_data_port(name: str) -> None:
    """Of all processes. They do not reach the HTTP port, which shows names of jobs, keys and hosts."""
    streams = next(pod.streams for pod in pods(rendered(name)) if pod.is_aggregator and not pod.is_relay)
    assert open_ports(rendered(name), worker(name), aggregator(name)) == streams


@pytest.mark.parametrize("name", FLEETS)
def test_nobody_else_of_the_namespace_reaches_anything(name: str) -> None:
    """A pod without the label and another aggregator reach no port. A worker reaches no port without a name."""
    for source in (STRANGER, aggregator(name)):
        assert open_ports(rendered(name), source, aggregator(name)) == set()
    assert not reaches(rendered(name), worker(name), aggregator(name), 22)


@pytest.mark.parametrize("name", FLEETS)
def test_workers_of_other_namespaces_are_kept_out(name: str) -> None:
    """The label alone is not enough: the pod must be in the same namespace."""
    elsewhere = Peer(worker(name).labels, namespace="other")
    assert open_ports(rendered(name), elsewhere, aggregator(name)) == set()


@pytest.mark.parametrize("name", FLEETS)
def test_prometheus_reaches_the_metrics_where_it_is_installed_for(name: str) -> None:
    """Prometheus reaches only the HTTP port, and only from its own namespace."""
    expected = {"http"} if any(r["kind"] == "ServiceMonitor" for r in rendered(name)) else set()
    assert open_ports(rendered(name), PROMETHEUS, aggregator(name)) == expected
    assert open_ports(rendered(name), Peer(PROMETHEUS.labels), aggregator(name)) == set()


@pytest.mark.parametrize("name", FLEETS)
def test_the_ingress_reaches_the_streams_where_there_is_one(name: str) -> None:
    """The ingress does not reach the data port, because it could not pass on data connections."""
    expected = {"grpc"} if any(r["kind"] == "Ingress" for r in rendered(name)) else set()
    assert open_ports(rendered(name), INGRESS, aggregator(name)) == expected


@pytest.mark.parametrize("name", FLEETS)
def test_aggregators_reach_nobody(name: str) -> None:
    """Aggregators open no connections, not even to the cluster's DNS. Policies do not affect answers to others."""
    dns = Peer({"k8s-app": "kube-dns"}, {"dns-tcp": 53}, namespace="kube-system")
    for target in (STRANGER, dns, worker(name)):
        for port in (53, 80, 443, 50051):
            assert not reaches(rendered(name), aggregator(name), target, port)
    assert reaches(rendered(name), worker(name), STRANGER, 80), "the model treats every pod as an aggregator"


def policy(**spec: object) -> Resource:
    """A network policy for pods with the label a=1."""
    selector = {"matchLabels": {"a": "1"}}
    return {
        "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": NAMESPACE},
        "spec": {"podSelector": selector, **spec},
    }


def test_a_pod_that_no_policy_selects_is_open() -> None:
    """A pod is also open if only a policy of another namespace or for the other direction selects it."""
    target = Peer({"a": "1"}, {"web": 80})
    assert reaches([], STRANGER, target, 80)
    assert not reaches([policy()], STRANGER, target, 80)
    assert reaches([policy()], STRANGER, Peer({"a": "2"}), 80)
    assert reaches([policy()], STRANGER, Peer({"a": "1"}, namespace="other"), 80)
    assert reaches([policy(policyTypes=["Egress"])], STRANGER, target, 80)
    assert not reaches([policy(egress=[])], target, STRANGER, 80), "a policy with egress rules applies to Egress too"


def test_rules_add_up_and_what_they_leave_out_is_not_limited() -> None:
    """A rule without peers is for all peers, and one without ports is for all ports. A range includes both its ends."""
    target = Peer({"a": "1"}, {"web": 80})
    assert reaches([policy(ingress=[{}])], STRANGER, target, 1234)
    assert reaches([policy(), policy(ingress=[{"ports": [{"port": "web"}]}])], STRANGER, target, 80)
    assert not reaches([policy(ingress=[{"ports": [{"port": "web"}]}])], STRANGER, target, 81)
    assert not reaches([policy(ingress=[{"ports": [{"port": 80, "protocol": "UDP"}]}])], STRANGER, target, 80)
    span = policy(ingress=[{"ports": [{"port": 80, "endPort": 90}]}])
    assert [reaches([span], STRANGER, target, port) for port in (79, 80, 90, 91)] == [False, True, True, False]


def test_a_peer_needs_both_its_namespace_and_its_labels() -> None:
    """A pod selector alone means the policy's own namespace. An empty namespace selector means all namespaces."""
    target = Peer({"a": "1"})

    def let_in(peer: Resource, source: Peer) -> bool:
        return reaches([policy(ingress=[{"from": [peer]}])], source, target, 80)

    assert let_in({"podSelector": {}}, STRANGER)
    assert not let_in({"podSelector": {}}, PROMETHEUS)
    assert let_in({"namespaceSelector": {}}, PROMETHEUS)
    assert not let_in({"namespaceSelector": {}, "podSelector": {"matchLabels": {"x": "y"}}}, PROMETHEUS)
    assert not let_in({"ipBlock": {"cidr": "0.0.0.0/0"}}, STRANGER)


def test_expressions_are_understood() -> None:
    """The model knows all four operators. An unknown operator is an error."""
    for operator, values, fits in (
        ("In", ["1"], True),
        ("In", ["2"], False),
        ("NotIn", ["1"], False),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
    ):
        selector = {"matchExpressions": [{"key": "a", "operator": operator, "values": values}]}
        assert selects(selector, {"a": "1"}) is fits
    with pytest.raises(ValueError, match="no such operator"):
        selects({"matchExpressions": [{"key": "a", "operator": "Like"}]}, {"a": "1"})
