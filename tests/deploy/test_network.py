"""The network policies mean what they say: who reaches which port of an aggregator, in every overlay."""

import pytest

from tests.deploy.manifests import RENDERED, Resource, pods, rendered
from tests.deploy.network import NAMESPACE, Peer, open_ports, reaches, selects

STREAMS = {"grpc", "data"}

#: Pods that are none of psum's.
STRANGER = Peer({"app.kubernetes.io/name": "other"}, {"http": 80, "dns": 53})
PROMETHEUS = Peer({"app.kubernetes.io/name": "prometheus"}, namespace="monitoring")
INGRESS = Peer({"app.kubernetes.io/name": "ingress-nginx"}, namespace="ingress-nginx")

#: Each overlay with aggregators, with the workers that are for it.
FLEETS = {
    name: {"single-node": "workers/single-node", "workers/jobset": "workers/jobset"}.get(
        name.partition(",")[0], "workers/indexed-job"
    )
    for name in RENDERED
    if any(pod.is_aggregator for pod in pods(rendered(name)))
}


def aggregator(name: str) -> Peer:
    """An aggregator of an overlay."""
    return next(Peer.of(pod) for pod in pods(rendered(name)) if pod.is_aggregator)


def worker(name: str) -> Peer:
    """A worker that is for an overlay."""
    return next(Peer.of(pod) for pod in pods(rendered(FLEETS[name])) if not pod.is_aggregator)


@pytest.mark.parametrize("name", FLEETS)
def test_workers_reach_the_streams_and_the_data_port(name: str) -> None:
    """And not the HTTP port, which shows names of jobs, keys and hosts."""
    assert open_ports(rendered(name), worker(name), aggregator(name)) == STREAMS


@pytest.mark.parametrize("name", FLEETS)
def test_nobody_else_of_the_namespace_reaches_anything(name: str) -> None:
    """Neither a pod without the label, nor another aggregator; nor a worker by any port that has no name."""
    for source in (STRANGER, aggregator(name)):
        assert open_ports(rendered(name), source, aggregator(name)) == set()
    assert not reaches(rendered(name), worker(name), aggregator(name), 22)


@pytest.mark.parametrize("name", FLEETS)
def test_workers_of_other_namespaces_are_kept_out(name: str) -> None:
    """The label alone does not let anybody in."""
    elsewhere = Peer(worker(name).labels, namespace="other")
    assert open_ports(rendered(name), elsewhere, aggregator(name)) == set()


@pytest.mark.parametrize("name", FLEETS)
def test_prometheus_reaches_the_metrics_where_it_is_installed_for(name: str) -> None:
    """From its own namespace only, and nothing but the HTTP port."""
    expected = {"http"} if any(r["kind"] == "ServiceMonitor" for r in rendered(name)) else set()
    assert open_ports(rendered(name), PROMETHEUS, aggregator(name)) == expected
    assert open_ports(rendered(name), Peer(PROMETHEUS.labels), aggregator(name)) == set()


@pytest.mark.parametrize("name", FLEETS)
def test_the_ingress_reaches_the_streams_where_there_is_one(name: str) -> None:
    """And no data port, which it could not pass on."""
    expected = {"grpc"} if any(r["kind"] == "Ingress" for r in rendered(name)) else set()
    assert open_ports(rendered(name), INGRESS, aggregator(name)) == expected


@pytest.mark.parametrize("name", FLEETS)
def test_aggregators_reach_nobody(name: str) -> None:
    """Not even the cluster's DNS: they open no connections. Answers on connections that came in are not concerned."""
    dns = Peer({"k8s-app": "kube-dns"}, {"dns-tcp": 53}, namespace="kube-system")
    for target in (STRANGER, dns, worker(name)):
        for port in (53, 80, 443, 50051):
            assert not reaches(rendered(name), aggregator(name), target, port)
    assert reaches(rendered(name), worker(name), STRANGER, 80), "the model takes every pod for an aggregator"


def policy(**spec: object) -> Resource:
    """A network policy for pods with the label a=1."""
    selector = {"matchLabels": {"a": "1"}}
    return {
        "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": NAMESPACE},
        "spec": {"podSelector": selector, **spec},
    }


def test_a_pod_that_no_policy_selects_is_open() -> None:
    """So is one that only a policy of another namespace, or for the other direction, selects."""
    target = Peer({"a": "1"}, {"web": 80})
    assert reaches([], STRANGER, target, 80)
    assert not reaches([policy()], STRANGER, target, 80)
    assert reaches([policy()], STRANGER, Peer({"a": "2"}), 80)
    assert reaches([policy()], STRANGER, Peer({"a": "1"}, namespace="other"), 80)
    assert reaches([policy(policyTypes=["Egress"])], STRANGER, target, 80)
    assert not reaches([policy(egress=[])], target, STRANGER, 80), "a policy with egress rules is one for Egress too"


def test_rules_add_up_and_what_they_leave_out_is_not_limited() -> None:
    """A rule without peers is for all, one without ports for all ports; a range of ports has both ends."""
    target = Peer({"a": "1"}, {"web": 80})
    assert reaches([policy(ingress=[{}])], STRANGER, target, 1234)
    assert reaches([policy(), policy(ingress=[{"ports": [{"port": "web"}]}])], STRANGER, target, 80)
    assert not reaches([policy(ingress=[{"ports": [{"port": "web"}]}])], STRANGER, target, 81)
    assert not reaches([policy(ingress=[{"ports": [{"port": 80, "protocol": "UDP"}]}])], STRANGER, target, 80)
    span = policy(ingress=[{"ports": [{"port": 80, "endPort": 90}]}])
    assert [reaches([span], STRANGER, target, port) for port in (79, 80, 90, 91)] == [False, True, True, False]


def test_a_peer_needs_both_its_namespace_and_its_labels() -> None:
    """A selector of pods alone is for the policy's own namespace; an empty one of namespaces is for all."""
    target = Peer({"a": "1"})

    def let_in(peer: Resource, source: Peer) -> bool:
        return reaches([policy(ingress=[{"from": [peer]}])], source, target, 80)

    assert let_in({"podSelector": {}}, STRANGER)
    assert not let_in({"podSelector": {}}, PROMETHEUS)
    assert let_in({"namespaceSelector": {}}, PROMETHEUS)
    assert not let_in({"namespaceSelector": {}, "podSelector": {"matchLabels": {"x": "y"}}}, PROMETHEUS)
    assert not let_in({"ipBlock": {"cidr": "0.0.0.0/0"}}, STRANGER)


def test_expressions_are_understood() -> None:
    """All four operators; another is an error rather than no limit."""
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
